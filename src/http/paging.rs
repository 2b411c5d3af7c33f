//! Lists in pages: an opaque cursor, a limit, and the address of the next page (RFC 8288).

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

/// Which page is asked for.
#[derive(Debug, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// The `next` of the page before; none asks for the first.
    #[garde(skip)]
    cursor: Option<String>,
    /// How many items at most.
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
    /// The `cursor` of the next page; none on the last.
    pub next: Option<String>,
}

impl Page {
    /// The sort key behind which the page begins.
    ///
    /// # Errors
    /// 422: the cursor is none that a page has given.
    pub fn after<K: DeserializeOwned>(&self) -> Result<Option<K>> {
        let key = |cursor: &String| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(cursor).ok()?).ok();
        match &self.cursor {
            None => Ok(None),
            Some(cursor) => key(cursor).map(Some).ok_or_else(|| Problem::invalid_field("cursor", "is none that a page has given")),
        }
    }

    /// How many items to fetch: one more than asked for, which tells whether there is a next page.
    pub fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The answer: of the items that were fetched those asked for, and where the next page begins.
    ///
    /// # Errors
    /// An item or its key makes no JSON.
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
        // The request's own address, with all that its query asks for, but for the cursor.
        let link = next.as_ref().and_then(|next| {
            let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).filter(|(key, _)| key != "cursor");
            let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).append_pair("cursor", next).finish();
            HeaderValue::try_from(format!("<{}?{query}>; rel=\"next\"", uri.path())).ok()
        });
        // Grown from nothing it would be copied half a dozen times.
        let mut body = Vec::with_capacity(8 * 1024);
        serde_json::to_writer(&mut body, &List { items, next }).map_err(Problem::internal)?;
        let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
        response.headers_mut().extend(link.map(|link| (header::LINK, link)));
        Ok(response)
    }
}
