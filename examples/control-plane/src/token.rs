//! Tokens of service accounts: JWTs that this control plane signs and checks itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use data_encoding::BASE64URL_NOPAD;
use mesh_authz::Identity;
use mesh_xds::serve::{Authenticating, Authenticator, Credentials, Unauthenticated};
use serde_json::{Value, json};

const ISSUER: &str = "control-plane";
const AUDIENCE: &str = "istio-ca";
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[derive(Clone)]
pub(crate) struct Tokens {
    key: hmac::Key,
    trust_domain: String,
}

impl Tokens {
    pub(crate) fn new(secret: &[u8], trust_domain: &str) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            trust_domain: trust_domain.to_owned(),
        }
    }

    /// A token with which a host becomes a service account.
    pub(crate) fn issue(&self, namespace: &str, account: &str, lifetime: Duration) -> String {
        let now = seconds();
        let claims = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": [AUDIENCE],
            "iat": now,
            "exp": now.saturating_add(lifetime.as_secs()),
        });
        let encode = |text: &[u8]| BASE64URL_NOPAD.encode(text);
        let signed = format!(
            "{}.{}",
            encode(HEADER.as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let tag = hmac::sign(&self.key, signed.as_bytes());
        format!("{signed}.{}", encode(tag.as_ref()))
    }

    fn check(&self, token: &str, now: u64) -> Result<Identity, &'static str> {
        let (signed, tag) = token.rsplit_once('.').ok_or("the token is no JWT")?;
        let tag = BASE64URL_NOPAD
            .decode(tag.as_bytes())
            .map_err(|_| "the token is no JWT")?;
        hmac::verify(&self.key, signed.as_bytes(), &tag)
            .map_err(|_| "the token is not signed by this control plane")?;
        // What we signed is what we wrote.
        let claims = signed.split_once('.').ok_or("the token is no JWT")?.1;
        let claims = BASE64URL_NOPAD
            .decode(claims.as_bytes())
            .map_err(|_| "the token is no JWT")?;
        let claims: Value = serde_json::from_slice(&claims).map_err(|_| "the token is no JWT")?;
        if claims["exp"].as_u64().is_none_or(|end| now >= end) {
            return Err("the token has expired");
        }
        let audiences = claims["aud"]
            .as_array()
            .ok_or("the token has no audience")?;
        if !audiences.iter().any(|one| one == AUDIENCE) || claims["iss"] != ISSUER {
            return Err("the token is not for istio-ca");
        }
        let subject = claims["sub"].as_str().unwrap_or_default();
        let account = subject.strip_prefix("system:serviceaccount:");
        let (namespace, account) = account
            .and_then(|text| text.split_once(':'))
            .ok_or("the token is of no service account")?;
        Identity::new(&self.trust_domain, namespace, account)
            .map_err(|_| "the token is of no service account")
    }
}

/// A certificate that was verified counts before a token, as in istiod.
impl Authenticator for Tokens {
    fn authenticate<'a>(&'a self, caller: &'a Credentials) -> Authenticating<'a> {
        Box::pin(async {
            if let Some(identity) = caller.certificate() {
                if identity.trust_domain() != self.trust_domain {
                    return Err(Unauthenticated::new(
                        "the certificate is of another trust domain",
                    ));
                }
                return Ok(identity.clone());
            }
            let token = caller.token();
            let token =
                token.ok_or_else(|| Unauthenticated::new("neither certificate nor token"))?;
            self.check(token, seconds()).map_err(Unauthenticated::new)
        })
    }
}

fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_it_expires_and_for_nobody_else() {
        let tokens = Tokens::new(b"a secret", "td");
        let token = tokens.issue("default", "reviews", Duration::from_secs(60));
        let now = seconds();
        let identity = tokens.check(&token, now).unwrap();
        assert_eq!(identity.to_string(), "spiffe://td/ns/default/sa/reviews");
        assert_eq!(
            tokens.check(&token, now + 120),
            Err("the token has expired")
        );
        let other = Tokens::new(b"another", "td");
        let refused = Err("the token is not signed by this control plane");
        assert_eq!(other.check(&token, now), refused);
        let (_, tag) = token.rsplit_once('.').unwrap();
        let forged = token.replace(tag, &tag.chars().rev().collect::<String>());
        assert!(tokens.check(&forged, now).is_err());
        for text in ["", "a", "a.b", "a.b.c", ".."] {
            assert!(tokens.check(text, now).is_err(), "{text}");
        }
    }
}
