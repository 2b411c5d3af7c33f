//! The guard before every route of the features: who asks, whether they may, and whether too often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Extension;
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use deadpool_redis::redis::pipe;
use tracing::{field, warn};
use uuid::Uuid;

use super::api_token;
use super::rules::{self, Rate, Role, Rule, Who};
use super::session::{self, Session, Sessions};
use crate::config::{self, PublicUrl};
use crate::http::ClientAddress;
use crate::http::limits::{self, Budget};
use crate::http::problem::{Problem, Result};
use crate::resources::postgres::Pool;
use crate::resources::redis::Redis;

/// Whose request it is; the guard adds it where a rule asks for more than anyone.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(Extension))]
pub struct Caller {
    pub account_id: Uuid,
}

/// What the guard needs.
pub struct Guard {
    /// The rules of all features. What they do not name is served to nobody.
    pub rules: Vec<Rule>,
    pub postgres: Pool,
    pub redis: Redis,
    pub sessions: Sessions,
    pub config: config::Http,
    pub site: PublicUrl,
    /// Whether it was logged that limits are not counted, which is logged once.
    pub unlimited: AtomicBool,
}

impl Guard {
    /// Lets a request in, or says why not; with what is left of its bucket, if Redis can tell.
    async fn admit(&self, request: &mut Request) -> Result<Option<Budget>> {
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let Rule { method, who, rate, .. } = rules::find(&self.rules, request.method(), path)?;
        let (who, rate) = (*who, *rate);
        let address = request.extensions().get::<ClientAddress>().copied();
        let address = address.ok_or_else(|| Problem::internal(anyhow::anyhow!("nobody tells the client's address")))?;

        let token = bearer(request.headers()).map(str::to_owned);
        let cookie = self.sessions.id_in(request.headers()).map(str::to_owned);
        // Where anyone may, a token decides nothing, and the cookie may count.
        if (token.is_none() || who == Who::Anyone) && !method.is_safe() {
            self.refuse_other_sites(request.headers(), cookie.is_some())?;
        }
        let (for_login, for_requests) = (self.config.rate_limit_login.get(), self.config.rate_limit_requests.get());
        let bucket = match rate {
            Rate::LogIn | Rate::Mail => Some((format!("login:{}", address.bucket()), for_login)),
            Rate::Requests => None,
        };
        let anonymous = bucket.clone().unwrap_or_else(|| (format!("address:{}", address.bucket()), for_requests));
        let (caller, budget) = match (who, token, cookie) {
            (Who::Anyone, ..) if rate == Rate::LogIn => return Ok(Some(self.ask(&anonymous).await?)),
            (Who::Anyone, ..) => return self.count(anonymous).await,
            (_, Some(token), _) => match self.by_token(&token, who, bucket).await? {
                Some(found) => found,
                None => return Err(self.nobody(anonymous).await?),
            },
            (_, None, Some(id)) => match self.by_session(&id, bucket).await? {
                Some((session, budget)) if who != Who::Admin || session.role == Role::Admin => {
                    let caller = Caller { account_id: session.account_id };
                    request.extensions_mut().insert(session);
                    (caller, Some(budget))
                }
                Some(_) => return Err(Problem::forbidden("insufficient-role", "this needs the role admin")),
                None => return Err(self.nobody(anonymous).await?),
            },
            (_, None, None) => return Err(self.nobody(anonymous).await?),
        };
        tracing::Span::current().record("account_id", field::display(caller.account_id));
        request.extensions_mut().insert(caller);
        Ok(budget)
    }

    /// Browsers say which site a request comes from. Who brings a cookie and does not say it is not let in, since the
    /// cookie alone may be another site's doing.
    fn refuse_other_sites(&self, headers: &HeaderMap, with_cookie: bool) -> Result<()> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let listed = self.config.cors_origins.as_ref();
        let own = match (text(header::HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN)) {
            (Some("same-origin" | "none"), _) => true,
            (_, Some(origin)) => origin == self.site.origin() || listed.is_some_and(|sites| sites.0.iter().any(|site| site == origin)),
            (Some(_), None) => false,
            (None, None) => !with_cookie,
        };
        let detail = "a change must come from this site, and with a cookie say so: in an `Origin` or `Sec-Fetch-Site` header";
        if own { Ok(()) } else { Err(Problem::forbidden("cross-site", detail)) }
    }

    /// Session and limit in one round trip. Without Redis there is neither: 503.
    async fn by_session(&self, id: &str, bucket: Option<(String, u32)>) -> Result<Option<(Session, Budget)>> {
        let hash = session::hash(id);
        let mut commands = pipe();
        self.sessions.ask(&mut commands, &hash);
        let (bucket, a_minute) = bucket.unwrap_or_else(|| (format!("session:{hash}"), self.config.rate_limit_requests.get()));
        limits::ask(&mut commands, &bucket, a_minute);
        let (data, answer): (Option<String>, limits::Answer) = self.redis.run(&commands).await?;
        let Some(session) = self.sessions.read(hash, data) else { return Ok(None) };
        Ok(Some((session, Budget::of(answer, a_minute)?)))
    }

    /// A token is looked up in Postgres at each use; 403 where it lacks the scope.
    async fn by_token(&self, token: &str, who: Who, bucket: Option<(String, u32)>) -> Result<Option<(Caller, Option<Budget>)>> {
        let Some(found) = api_token::find(&mut *self.postgres.acquire().await?, token).await? else { return Ok(None) };
        let budget = self.count(bucket.unwrap_or_else(|| (format!("token:{}", found.id), self.config.rate_limit_requests.get()))).await?;
        match who {
            Who::Scope(scope) if found.scopes.iter().any(|has| has == scope) => Ok(Some((Caller { account_id: found.account_id }, budget))),
            Who::Scope(scope) => Err(insufficient_scope(&format!("the token lacks the scope {scope}"))),
            _ => Err(insufficient_scope("this needs a session, not a token")),
        }
    }

    /// 401, but counted: guessing has its limit.
    async fn nobody(&self, bucket: (String, u32)) -> Result<Problem> {
        self.count(bucket).await?;
        Ok(Problem::unauthenticated())
    }

    /// Counts a request that needs no session: while Redis is away, it passes unlimited.
    async fn count(&self, bucket: (String, u32)) -> Result<Option<Budget>> {
        let asked = self.ask(&bucket).await;
        match asked {
            Err(Problem { status: StatusCode::SERVICE_UNAVAILABLE, source, .. }) => {
                if !self.unlimited.swap(true, Ordering::Relaxed) {
                    let why = source.map(|source| format!("{source:#}")).unwrap_or_default();
                    warn!(error = why, "requests without a session pass unlimited, Redis is away: {why}");
                }
                Ok(None)
            }
            answered => {
                self.unlimited.store(false, Ordering::Relaxed);
                answered.map(Some)
            }
        }
    }

    async fn ask(&self, (bucket, a_minute): &(String, u32)) -> Result<Budget> {
        let mut commands = pipe();
        limits::ask(&mut commands, bucket, *a_minute);
        let (answer,) = self.redis.run(&commands).await?;
        Budget::of(answer, *a_minute)
    }
}

/// The middleware.
pub async fn guard(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    match guard.admit(&mut request).await {
        Ok(budget) => {
            let mut response = next.run(request).await;
            if let Some(budget) = budget {
                response.headers_mut().extend(budget.headers());
            }
            response
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// RFC 6750, 2.1: the scheme's case does not matter.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// RFC 6750, 3.1.
fn insufficient_scope(detail: &str) -> Problem {
    let challenge = HeaderValue::from_static("Bearer error=\"insufficient_scope\"");
    Problem { headers: vec![(header::WWW_AUTHENTICATE, challenge)], ..Problem::forbidden("insufficient-scope", detail) }
}
