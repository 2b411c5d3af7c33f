//! The types of the variables for the log and for traces.

use tracing_subscriber::filter::Targets;

use super::Setting;

/// Filter directives of the log.
#[derive(Debug, Clone)]
pub struct LogFilter(pub Targets);

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Pretty,
}

/// The protocol for traces. Only one is supported.
#[derive(Debug, Clone, Copy)]
pub struct Protocol;

/// Where traces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    Otlp,
    None,
}

/// The share of traces to send. The SDK reads the variable itself.
#[derive(Debug, Clone, Copy)]
pub struct Share;

/// The sampler for traces. The SDK reads the variable itself.
#[derive(Debug, Clone)]
pub struct Sampler(pub String);

impl Setting for LogFilter {
    fn parse(text: &str) -> Result<Self, String> {
        let shape = || "must be a level (error, warn, info, debug, trace, off) or filter directives such as `info,sqlx=warn`".to_owned();
        // The parser reads an unknown level as a target, which would silence all other targets.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let known = |directive: &str| {
            let (target, level) = directive.rsplit_once('=').unwrap_or(("", directive));
            let is_path = target.trim().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte));
            is_path && levels.contains(&level.trim().to_ascii_lowercase().as_str())
        };
        if !text.split(',').all(known) {
            return Err(shape());
        }
        // Postgres's notices, such as "already exists, skipping", and each retry of a request to the object store are not
        // worth logging. A directive can turn them on.
        let directives = format!("sqlx::postgres::notice=warn,object_store::client=warn,{text}");
        directives.parse().map(Self).map_err(|_| shape())
    }
}

impl Setting for LogFormat {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err("must be `json` or `pretty`".to_owned()),
        }
    }
}

impl Setting for Protocol {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "http/protobuf" { Ok(Self) } else { Err("must be http/protobuf, the only one that is supported".to_owned()) }
    }
}

impl Setting for Exporter {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "otlp" => Ok(Self::Otlp),
            "none" => Ok(Self::None),
            _ => Err("must be otlp or none".to_owned()),
        }
    }
}

impl Setting for Share {
    fn parse(text: &str) -> Result<Self, String> {
        let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(|_| Self).ok_or_else(|| "must be a share from 0 to 1".to_owned())
    }
}

impl Setting for Sampler {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("parentbased_").unwrap_or(text) {
            "always_on" | "always_off" | "traceidratio" => Ok(Self(text.to_owned())),
            _ => Err("must be always_on, always_off or traceidratio, or one of these after parentbased_".to_owned()),
        }
    }
}
