//! Pagination: an opaque cursor, a limit, and a `Link` to the next page (RFC 8288).

use axum::extract::OriginalUri;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use garde::Validate;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{Problem, Result};

/// The requested page.
#[derive(Debug, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// The `next` of the previous page. Leave it out to get the first page.
    #[garde(skip)]
    cursor: Option<String>,
    /// The most items to return.
    #[garde(range(min = 1, max = 100))]
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: u8,
}

fn default_limit() -> u8 {
    20
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
    /// The `cursor` of the next page. Null on the last page.
    pub next: Option<String>,
}

impl Page {
    /// The sort key after which the page begins.
    ///
    /// # Errors
    /// 422: the cursor did not come from a page.
    pub fn after<K: DeserializeOwned>(&self) -> Result<Option<K>> {
        let key = |cursor: &String| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).ok()?).ok();
        match &self.cursor {
            None => Ok(None),
            Some(cursor) => key(cursor).map(Some).ok_or_else(|| Problem::invalid_field("cursor", "is not a cursor that a page returned")),
        }
    }

    /// How many items to fetch. It is one more than requested, which shows whether there is a next page.
    pub fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The response: the requested items out of those that were fetched, and the cursor of the next page.
    ///
    /// # Errors
    /// An item or its key cannot be serialized.
    pub fn answer<T: Serialize, K: Serialize>(
        &self,
        OriginalUri(uri): &OriginalUri,
        mut items: Vec<T>,
        key: impl Fn(&T) -> K,
    ) -> Result<Response> {
        let more = items.len() > usize::from(self.limit);
        items.truncate(self.limit.into());
        let last = items.last().filter(|_| more).map(|item| serde_json::to_vec(&key(item))).transpose().map_err(Problem::internal)?;
        let next = last.map(|key| URL_SAFE_NO_PAD.encode(key));
        // The request's own URL and query, with another cursor.
        let link = next.as_ref().and_then(|next| {
            let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).filter(|(key, _)| key != "cursor");
            let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).append_pair("cursor", next).finish();
            HeaderValue::try_from(format!("<{}?{query}>; rel=\"next\"", uri.path())).ok()
        });
        // Sized in advance, because growing from empty copies it half a dozen times.
        let mut body = Vec::with_capacity(8 * 1024);
        serde_json::to_writer(&mut body, &List { items, next }).map_err(Problem::internal)?;
        let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
        response.headers_mut().extend(link.map(|link| (header::LINK, link)));
        Ok(response)
    }
}
