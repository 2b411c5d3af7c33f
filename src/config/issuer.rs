//! The settings of issuers of tokens, and the variables that need each other.

use secrecy::SecretString;
use url::{Host, Url};

use super::{Env, Problems, Section, Setting, Variable, section};

/// The identifier of an issuer of tokens, as its tokens repeat it byte by byte (OIDC Discovery 1.0, 4.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUrl(pub String);

impl Setting for IssuerUrl {
    fn parse(text: &str) -> Result<Self, String> {
        let shape = || "must be an address such as https://login.example.com, as the issuer's tokens contain it".to_owned();
        let url = Url::parse(text).map_err(|_| shape())?;
        let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || !bare {
            return Err(shape());
        }
        // Without TLS, another server could answer in the issuer's place, and then sign any token.
        let local = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => return Err(shape()),
        };
        if url.scheme() == "http" && !local {
            return Err("must begin with https://, except on this machine".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

section! {
    /// The variables of [`Tokens`].
    #[expect(clippy::struct_field_names, reason = "a field is a variable, and has its name")]
    pub struct TokenVariables {
        /// Issuer whose access tokens (JWT, RFC 9068) services may use: `https://login.example.com`; unset accepts none
        token_issuer: Option<IssuerUrl>,
        /// The audience that these tokens must have, which is the issuer's name for this API; required with `TOKEN_ISSUER`
        token_audience: Option<String>,
        /// Claim with the roles of such a token: its name, or its path such as `/realm_access/roles`; unset gives no roles
        token_roles_claim: Option<String>,
    }
}

/// An issuer, and what its access tokens must be like.
#[derive(Debug, Clone)]
pub struct TokenIssuer {
    pub url: IssuerUrl,
    pub audience: String,
    pub roles_claim: Option<String>,
}

/// The issuer whose access tokens are accepted, if there is one.
#[derive(Debug, Clone)]
pub struct Tokens(pub Option<TokenIssuer>);

impl Section for Tokens {
    fn variables() -> Vec<Variable> {
        TokenVariables::variables()
    }

    fn read(env: &Env, problems: &mut Problems) -> Option<Self> {
        let TokenVariables { token_issuer, token_audience, token_roles_claim } = TokenVariables::read(env, problems)?;
        let Some(url) = token_issuer else { return Some(Self(None)) };
        let Some(audience) = token_audience else {
            // Without an audience, tokens for any other API of the issuer would be accepted.
            problems.require::<TokenVariables>("TOKEN_AUDIENCE", "is missing, which TOKEN_ISSUER requires");
            return None;
        };
        Some(Self(Some(TokenIssuer { url, audience, roles_claim: token_roles_claim })))
    }
}

section! {
    /// The variables of [`Oidc`].
    #[expect(clippy::struct_field_names, reason = "a field is a variable, and has its name")]
    pub struct OidcVariables {
        /// Identity provider (OIDC) that people may log in with: `https://login.example.com`; unset offers none
        oidc_issuer: Option<IssuerUrl>,
        /// Id of this deploy at the identity provider; required with `OIDC_ISSUER`
        oidc_client_id: Option<String>,
        /// Secret of this deploy at the identity provider; required with `OIDC_ISSUER`
        oidc_client_secret: Option<SecretString>,
    }
}

/// An identity provider, and what it knows this deploy by.
#[derive(Debug, Clone)]
pub struct OidcClient {
    pub issuer: IssuerUrl,
    pub id: String,
    pub secret: SecretString,
}

/// The identity provider, if there is one.
#[derive(Debug, Clone)]
pub struct Oidc(pub Option<OidcClient>);

impl Section for Oidc {
    fn variables() -> Vec<Variable> {
        OidcVariables::variables()
    }

    fn read(env: &Env, problems: &mut Problems) -> Option<Self> {
        let OidcVariables { oidc_issuer, oidc_client_id, oidc_client_secret } = OidcVariables::read(env, problems)?;
        let Some(issuer) = oidc_issuer else { return Some(Self(None)) };
        for (name, missing) in [("OIDC_CLIENT_ID", oidc_client_id.is_none()), ("OIDC_CLIENT_SECRET", oidc_client_secret.is_none())] {
            if missing {
                problems.require::<OidcVariables>(name, "is missing, which OIDC_ISSUER requires");
            }
        }
        Some(Self(Some(OidcClient { issuer, id: oidc_client_id?, secret: oidc_client_secret? })))
    }
}
