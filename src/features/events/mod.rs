//! The event stream of a session: says at once what has changed, whichever process has changed it.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::{App, Feature};
use crate::auth::rules::{Rate, Rule, Who};
use crate::auth::session::Session;
use crate::http::{Problem, Result};
use crate::resources::events::{Message, Refused, Subscriber};

pub const FEATURE: Feature = Feature { name: "events", api, access: ACCESS, ..Feature::EMPTY };

const ACCESS: &[Rule] = &[Rule::new(Method::GET, "/api/v1/events", Who::SignedIn, Rate::Requests)];

/// How often a stream without events sends a comment. Proxies close a connection that is silent for longer, mostly after
/// a minute.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// How long clients wait before they connect again, by their session. If they all waited as long, a drain would send them
/// to the other processes in the same moment.
const RECONNECT_DELAYS_MS: [u64; 4] = [500, 1000, 1500, 2000];

fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stream_events))
}

/// The data of an event.
#[derive(Serialize, ToSchema)]
struct Changed {
    /// The feature's name.
    #[schema(example = "files")]
    feature: String,
    /// The id of what has changed.
    id: Uuid,
}

/// Watch for changes
///
/// A stream of server-sent events. `changed` names something of this account that has changed. `resync` says that events
/// may have been lost. Also after each new connection, read again what you show. The stream ends when the process stops,
/// and with the session.
#[utoipa::path(get, path = "/events", tag = "Events",
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = inline(Changed))))]
async fn stream_events(State(app): State<App>, session: Session) -> Result<impl IntoResponse> {
    let turn = session.hash.bytes().map(usize::from).sum::<usize>() % RECONNECT_DELAYS_MS.len();
    let delay = Duration::from_millis(RECONNECT_DELAYS_MS[turn]);
    let subscriber = Subscriber { account_id: session.account_id, session: session.hash, epoch: session.epoch };
    let receiver = app.events.open(subscriber).map_err(|refused| match refused {
        Refused::Account => Problem::too_many("The account has too many event streams. Close one of them.", 10),
        Refused::Process => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many event streams. Please retry shortly."),
    })?;
    let messages = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let first = stream::once(async move { Event::default().retry(delay) });
    let events = first.chain(messages.map(|message| event(message).unwrap_or_default())).map(Ok::<_, Infallible>);
    let heartbeat = KeepAlive::new().interval(HEARTBEAT_INTERVAL);
    // Tells nginx and those that follow it not to hold the stream back.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    Ok(([(unbuffered, "no"), (header::CACHE_CONTROL, "no-store")], Sse::new(events).keep_alive(heartbeat)))
}

fn event(message: Message) -> std::result::Result<Event, axum::Error> {
    match message {
        Message::Changed(event) => Event::default().event("changed").json_data(Changed { feature: event.feature, id: event.id }),
        Message::Resync => Ok(Event::default().event("resync").data("")),
    }
}
