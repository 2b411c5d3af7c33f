//! Converts times between Postgres and the API.

use jiff_sqlx::ToSqlx;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A time as Postgres stores it, to the microsecond. The API writes it in RFC 3339, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(from = "jiff::Timestamp", into = "jiff::Timestamp")]
#[sqlx(transparent)]
#[schema(value_type = jiff::Timestamp)]
pub struct Timestamp(jiff_sqlx::Timestamp);

impl From<jiff::Timestamp> for Timestamp {
    fn from(time: jiff::Timestamp) -> Self {
        Self(time.to_sqlx())
    }
}

impl From<Timestamp> for jiff::Timestamp {
    fn from(time: Timestamp) -> Self {
        time.0.to_jiff()
    }
}
