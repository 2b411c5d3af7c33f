//! The guard before every route of the features. It authenticates the request, checks the access rule and applies the
//! rate limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{field, warn};

use super::access_token::{self, AccessTokens, Grant};
use super::api_token;
use super::audit::{Actor, By};
use super::caller::Caller;
use super::rules::{self, Rate, Role, Rule, Who};
use super::session::{Session, Sessions};
use super::standing::{Standing, Standings};
use crate::config::{self, PublicUrl};
use crate::http::ClientAddress;
use crate::http::limits::{self, Budget};
use crate::http::problem::{Problem, Result};
use crate::resources::postgres::Pool;
use crate::resources::redis::Redis;

/// How long a session counts as confirmed after the password was entered.
const CONFIRMATION_LIFETIME: Duration = Duration::from_mins(10);

/// The parts of the guard.
pub struct Guard {
    /// The rules of all features. A route without a rule is refused.
    pub rules: Vec<Rule>,
    pub postgres: Pool,
    pub redis: Redis,
    pub sessions: Sessions,
    pub standings: Standings,
    /// None if no issuer's tokens are accepted.
    pub access_tokens: Option<AccessTokens>,
    pub config: config::Http,
    pub flags: config::Flags,
    pub site: PublicUrl,
    /// Whether the warning that limits are not counted has been logged, which happens once for each outage.
    pub unlimited: AtomicBool,
}

impl Guard {
    /// Admits a request, or returns the problem to refuse it with. Returns the state of its rate limit, if Redis is
    /// available.
    async fn admit(&self, request: &mut Request) -> Result<Option<Budget>> {
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let Rule { method, who, rate, flag, .. } = rules::find(&self.rules, request.method(), path)?;
        if flag.is_some_and(|flag| !flag.is_on(&self.flags)) {
            return Err(Problem::forbidden("feature-disabled", "This deploy has turned this off."));
        }
        let (who, rate) = (*who, *rate);
        let address = request.extensions().get::<ClientAddress>().copied();
        let address = address.ok_or_else(|| Problem::internal(anyhow::anyhow!("the request has no client address")))?;

        let token = bearer(request.headers()).map(str::to_owned);
        let cookie = self.sessions.id_in(request.headers()).map(str::to_owned);
        // If anyone may call the operation, a token is ignored and the cookie may take effect.
        if (token.is_none() || who == Who::Anyone) && !method.is_safe() {
            self.refuse_other_sites(request.headers(), cookie.is_some())?;
        }
        let for_login = (rate == Rate::LogIn).then(|| (format!("login:{}", address.bucket()), self.config.rate_limit_login.get()));
        let of_nobody = for_login.clone().unwrap_or_else(|| (format!("address:{}", address.bucket()), self.a_minute()));
        let (caller, budget) = match (who, token, cookie) {
            (Who::Anyone, ..) if rate == Rate::Static => return Ok(None),
            (Who::Anyone, ..) if rate == Rate::LogIn => return Ok(Some(self.ask(&of_nobody).await?)),
            (Who::Anyone, ..) => return self.count(of_nobody).await,
            (_, Some(token), _) => match self.by_token(&token, who, address).await {
                Err(refusal) if refusal.status == StatusCode::UNAUTHORIZED => {
                    // Beyond the limit, the response no longer tells whether a token is wrong.
                    self.count(of_nobody).await?;
                    return Err(refusal);
                }
                found => found?,
            },
            (_, None, Some(id)) => match self.by_session(&id, for_login).await? {
                Some((session, standing, budget)) => {
                    self.allow(who, &session, standing)?;
                    let by = By { actor: Actor::Account(session.account_id), address: Some(address) };
                    let caller = Caller { account_id: session.account_id, epoch: session.epoch, by };
                    request.extensions_mut().insert(session);
                    (caller, Some(budget))
                }
                None => return Err(self.nobody(of_nobody).await?),
            },
            (_, None, None) => return Err(self.nobody(of_nobody).await?),
        };
        tracing::Span::current().record("account_id", field::display(caller.account_id));
        request.extensions_mut().insert(caller);
        Ok(budget)
    }

    /// Refuses changes from other sites. Browsers send the site that a request comes from. A request with a cookie and
    /// without that header is refused, because another site may have caused it.
    fn refuse_other_sites(&self, headers: &HeaderMap, with_cookie: bool) -> Result<()> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let listed = self.config.cors_origins.as_ref();
        let own = match (text(header::HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN)) {
            (Some("same-origin" | "none"), _) => true,
            (_, Some(origin)) => origin == self.site.origin() || listed.is_some_and(|sites| sites.0.iter().any(|site| site == origin)),
            (Some(_), None) => false,
            (None, None) => !with_cookie,
        };
        let detail = "A change must come from this site. A request with a cookie needs an `Origin` or `Sec-Fetch-Site` header.";
        if own { Ok(()) } else { Err(Problem::forbidden("cross-site", detail)) }
    }

    fn a_minute(&self) -> u32 {
        self.config.rate_limit_requests.get()
    }

    /// Checks whether a valid session satisfies the rule.
    fn allow(&self, who: Who, session: &Session, standing: Standing) -> Result<()> {
        let age = |at| self.sessions.now().duration_since(at).unsigned_abs();
        match who {
            Who::Admin if standing.role != Role::Admin => Err(Problem::forbidden("insufficient-role", "This requires the role admin.")),
            Who::Confirmed if session.confirmed_at.is_none_or(|at| age(at) > CONFIRMATION_LIFETIME) => {
                let detail = "Confirm your password first: `POST /api/v1/session/confirm`. Without a password, log in again.";
                Err(Problem::forbidden("confirmation-required", detail))
            }
            _ => Ok(()),
        }
    }

    /// Finds the session and counts the request in one round trip. 503 while Redis is unavailable.
    async fn by_session(&self, id: &str, for_login: Option<(String, u32)>) -> Result<Option<(Session, Standing, Budget)>> {
        let Some((session, answer, a_minute)) = self.sessions.find(id, for_login, self.a_minute()).await? else { return Ok(None) };
        let standing = self.standings.of(session.account_id, session.epoch).await?;
        let Some(standing) = standing.filter(|standing| !standing.suspended && standing.epoch <= session.epoch) else { return Ok(None) };
        Ok(Some((session, standing, Budget::of(answer, a_minute)?)))
    }

    /// Finds whom the token belongs to: an API token in Postgres, or a service's access token by its signature. 401 if
    /// it is not valid, 403 if it lacks the scope.
    async fn by_token(&self, token: &str, who: Who, address: ClientAddress) -> Result<(Caller, Option<Budget>)> {
        let (account_id, epoch, actor, scopes, role) = match &self.access_tokens {
            Some(access_tokens) if access_token::has_form(token) => {
                let Grant { service, scopes, role } = access_tokens.check(token).await?;
                (service.account_id, service.epoch, Actor::Service(service.account_id), scopes, role)
            }
            _ if api_token::has_form(token) => {
                let found = api_token::find(&mut *self.postgres.acquire().await?, token).await?;
                let found = found.ok_or_else(Problem::unauthenticated)?;
                (found.account_id, found.epoch, Actor::Token(found.id), found.scopes, Role::User)
            }
            _ => return Err(Problem::unauthenticated()),
        };
        let budget = self.count((format!("account:{account_id}"), self.a_minute())).await?;
        let caller = Caller { account_id, epoch, by: By { actor, address: Some(address) } };
        match who {
            Who::Scope(scope) if scopes.iter().any(|has| has == scope) => Ok((caller, budget)),
            Who::Admin if role == Role::Admin => Ok((caller, budget)),
            Who::Scope(scope) => Err(insufficient_scope(&format!("The token lacks the scope {scope}."))),
            Who::Admin => Err(insufficient_scope("This requires the role admin.")),
            _ => Err(insufficient_scope("This requires a session. Tokens are not accepted.")),
        }
    }

    /// Counts the request and returns a 401, so that guessing is limited.
    async fn nobody(&self, bucket: (String, u32)) -> Result<Problem> {
        self.count(bucket).await?;
        Ok(Problem::unauthenticated())
    }

    /// Counts a request that needs no session. While Redis is unavailable, the request passes without a limit.
    async fn count(&self, bucket: (String, u32)) -> Result<Option<Budget>> {
        let asked = self.ask(&bucket).await;
        match asked {
            Err(Problem { status: StatusCode::SERVICE_UNAVAILABLE, source, .. }) => {
                if !self.unlimited.swap(true, Ordering::Relaxed) {
                    let why = source.map(|source| format!("{source:#}")).unwrap_or_default();
                    warn!(error = why, "requests without a session are not rate limited: Redis unavailable: {why}");
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
        let (answer,) = self.redis.run(&limits::ask(bucket, *a_minute)).await?;
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
