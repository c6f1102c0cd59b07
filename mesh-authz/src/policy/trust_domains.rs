use std::sync::Arc;

/// The trust domain that policies mean by `cluster.local`, with the older names it is also known by.
///
/// Istio's `meshConfig.trustDomain` and `trustDomainAliases`: a principal of a policy whose trust
/// domain is `cluster.local`, the local one or an alias stands for the same account in all of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomains {
    all: Vec<Arc<str>>,
}

/// What Istio calls the local trust domain when it is not named.
const POINTER: &str = "cluster.local";

impl TrustDomains {
    /// Names the local trust domain.
    pub fn new(local: impl Into<Arc<str>>) -> Self {
        Self {
            all: vec![local.into()],
        }
    }

    /// Adds aliases.
    #[must_use]
    pub fn with_aliases<S: Into<Arc<str>>>(mut self, aliases: impl IntoIterator<Item = S>) -> Self {
        for alias in aliases {
            let alias = alias.into();
            if !self.all.contains(&alias) {
                self.all.push(alias);
            }
        }
        self
    }

    /// The local trust domain.
    pub fn local(&self) -> &str {
        &self.all[0]
    }

    /// Its aliases.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        self.all[1..].iter().map(|alias| &**alias)
    }

    /// Expands a principal as a policy writes it, wildcards included, into all that it stands for.
    ///
    /// As Istio does, it looks only at the full form `td/ns/<namespace>/sa/<account>`; anything else,
    /// and a trust domain that is foreign or `*`, stands for itself. `*suffix` covers what ends so.
    pub fn expand(&self, principal: &str) -> Vec<String> {
        let itself = || vec![principal.to_owned()];
        if principal.split('/').count() != 5 {
            return itself();
        }
        let Some((domain, path)) = principal.split_once('/') else {
            return itself();
        };
        let covers = |known: &str| match domain.strip_prefix('*') {
            Some(suffix) => known.ends_with(suffix),
            None => known == domain,
        };
        if domain == "*" || !(domain == POINTER || self.all.iter().any(|known| covers(known))) {
            return itself();
        }
        let mut expanded = Vec::with_capacity(self.all.len());
        for known in &self.all {
            let one = if covers(known) {
                principal.to_owned()
            } else {
                format!("{known}/{path}")
            };
            if !expanded.contains(&one) {
                expanded.push(one);
            }
        }
        expanded
    }
}

impl Default for TrustDomains {
    /// `cluster.local` without aliases.
    fn default() -> Self {
        Self::new(POINTER)
    }
}
