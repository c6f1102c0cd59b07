//! AuthorizationPolicy, PeerAuthentication and RequestAuthentication.
//!
//! Every field that is not known is refused: one that is passed over could widen access.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use mesh_authz::policy::istio::{self, Condition, Operation, Rule, Source};
use mesh_authz::policy::{Action, Policy, PolicyName, TrustDomains};

use super::meta::{Labels, Meta, labels};
use super::quantity::duration;
use crate::file::cursor::{Cursor, Fields, Result};
use crate::file::problem::Invalid;
use crate::file::settings::Settings;
use crate::model::{Jwks, JwtRule, ObjectName, Scope, Target, TokenLocation};

/// What a policy binds, before its place is known.
#[derive(Debug, Clone)]
pub(crate) enum Attachment {
    /// All of its namespace; of the root namespace, all of the mesh.
    Everything,
    /// The workloads with these labels.
    Selector(Labels),
    Targets(Vec<Target>),
}

impl Attachment {
    fn read(meta: &Meta, spec: &mut Fields<'_>, settings: &Settings) -> Result<Self> {
        let selector = spec.map("selector", selector)?;
        let mut targets = spec.list("targetRefs", |at| target(at, meta, settings))?;
        targets.extend(spec.map("targetRef", |at| target(at, meta, settings))?);
        if targets.len() > 16 {
            return Err(spec
                .at()
                .invalid_below("targetRefs", "expected at most 16 targets"));
        }
        match (selector, targets.is_empty()) {
            (None, true) => Ok(Self::Everything),
            (Some(labels), true) if labels.is_empty() => Ok(Self::Everything),
            (Some(labels), true) => Ok(Self::Selector(labels)),
            (None, false) => Ok(Self::Targets(targets)),
            (Some(_), false) => Err(spec.at().invalid_below(
                "selector",
                "excludes targetRefs: expected only one of the two",
            )),
        }
    }

    /// What the object binds, or its namespace when even that cannot be read.
    fn read_or_everything(meta: &Meta, fields: &mut Fields<'_>, settings: &Settings) -> Self {
        fields
            .get("spec")
            .and_then(|spec| Self::read(meta, &mut spec.fields().ok()?, settings).ok())
            .unwrap_or(Self::Everything)
    }

    pub(crate) fn scope(&self, meta: &Meta, settings: &Settings) -> Scope {
        match self {
            Self::Everything if *meta.namespace == *settings.root_namespace() => Scope::Mesh,
            Self::Everything => Scope::Namespace(Arc::clone(&meta.namespace)),
            Self::Selector(_) => Scope::Workload,
            Self::Targets(targets) => Scope::Targets(targets.clone()),
        }
    }
}

fn selector(at: &Cursor<'_>) -> Result<Labels> {
    let mut fields = at.fields()?;
    let chosen = fields.map("matchLabels", labels)?.unwrap_or_default();
    fields.finish()?;
    Ok(chosen)
}

fn target(at: &Cursor<'_>, meta: &Meta, settings: &Settings) -> Result<Target> {
    let mut fields = at.fields()?;
    let group = fields.text("group")?;
    let kind = fields.need("kind")?.nonempty()?;
    let name = fields.need("name")?.nonempty()?;
    let namespace = fields.text("namespace")?;
    fields.finish()?;
    if !namespace.is_empty() && namespace != meta.namespace {
        return Err(at.invalid_below(
            "namespace",
            format_args!(
                "expected the policy's own namespace {:?}, found {namespace:?}",
                meta.namespace
            ),
        ));
    }
    let object = ObjectName::new(Arc::clone(&meta.namespace), Arc::clone(&name));
    match (&*group, &*kind) {
        ("" | "core", "Service") => Ok(Target::Service(object)),
        ("networking.istio.io", "ServiceEntry") => Ok(Target::ServiceEntry(object)),
        ("gateway.networking.k8s.io", "Gateway") => Ok(Target::Gateway(object)),
        ("gateway.networking.k8s.io", "GatewayClass") => {
            if *meta.namespace != *settings.root_namespace() {
                return Err(at.invalid(format_args!(
                    "a policy for a GatewayClass has to be in the root namespace {:?}",
                    settings.root_namespace()
                )));
            }
            Ok(Target::GatewayClass(name))
        }
        _ => Err(at.invalid(format_args!(
            "expected a Service, ServiceEntry, Gateway or GatewayClass with its group, found {kind:?} of group {group:?}"
        ))),
    }
}

#[derive(Debug, Clone)]
pub(crate) struct AuthorizationPolicy {
    pub(crate) meta: Meta,
    pub(crate) attachment: Attachment,
    pub(crate) policy: Arc<Policy>,
}

impl AuthorizationPolicy {
    pub(crate) fn read(
        meta: Meta,
        document: &Cursor<'_>,
        fields: &mut Fields<'_>,
        settings: &Settings,
    ) -> Result<Self> {
        let mut policy = istio::AuthorizationPolicy::new(&*meta.namespace, &*meta.name);
        let mut attachment = Attachment::Everything;
        if let Some(spec) = fields.get("spec") {
            let mut spec = spec.fields()?;
            attachment = Attachment::read(&meta, &mut spec, settings)?;
            policy.action = action(&mut spec)?;
            policy.rules = spec.list("rules", rule)?;
            spec.finish()?;
        }
        policy.dry_run = meta.annotation("istio.io/dry-run") == Some("true");
        let trust_domains = TrustDomains::new(settings.trust_domain())
            .with_aliases(settings.trust_domain_aliases().iter().cloned());
        let policy = policy
            .lower(&trust_domains)
            .map_err(|error| document.invalid_policy(error.field(), &error))?;
        Ok(Self {
            meta,
            attachment,
            policy: Arc::new(policy),
        })
    }
}

fn action(spec: &mut Fields<'_>) -> Result<Action> {
    let provider = spec.map("provider", |at| {
        let mut fields = at.fields()?;
        let name = fields.need("name")?.nonempty()?;
        fields.finish()?;
        Ok(name)
    })?;
    let Some(at) = spec.get("action") else {
        return Ok(Action::Allow);
    };
    match (at.str()?, provider) {
        ("CUSTOM", Some(provider)) => Ok(Action::Custom { provider }),
        ("CUSTOM", None) => Err(spec
            .at()
            .invalid_below("provider", "missing: action CUSTOM needs one")),
        (_, Some(_)) => Err(spec
            .at()
            .invalid_below("provider", "only action CUSTOM has one")),
        ("ALLOW", None) => Ok(Action::Allow),
        ("DENY", None) => Ok(Action::Deny),
        ("AUDIT", None) => Ok(Action::Audit),
        (other, None) => Err(at.invalid(format_args!(
            "expected one of ALLOW, DENY, AUDIT, CUSTOM, found {other:?}"
        ))),
    }
}

fn rule(at: &Cursor<'_>) -> Result<Rule> {
    let mut fields = at.fields()?;
    let mut rule = Rule::default();
    rule.from = fields.list("from", |at| {
        let mut fields = at.fields()?;
        let source = source(&fields.need("source")?)?;
        fields.finish()?;
        Ok(source)
    })?;
    rule.to = fields.list("to", |at| {
        let mut fields = at.fields()?;
        let operation = operation(&fields.need("operation")?)?;
        fields.finish()?;
        Ok(operation)
    })?;
    rule.when = fields.list("when", |at| {
        let mut fields = at.fields()?;
        let mut condition = Condition::default();
        condition.key = fields.need("key")?.str()?.to_owned();
        condition.values = fields.strings("values")?;
        condition.not_values = fields.strings("notValues")?;
        fields.finish()?;
        Ok(condition)
    })?;
    fields.finish()?;
    Ok(rule)
}

fn source(at: &Cursor<'_>) -> Result<Source> {
    let mut fields = at.fields()?;
    let mut source = Source::default();
    source.principals = fields.strings("principals")?;
    source.not_principals = fields.strings("notPrincipals")?;
    source.request_principals = fields.strings("requestPrincipals")?;
    source.not_request_principals = fields.strings("notRequestPrincipals")?;
    source.namespaces = fields.strings("namespaces")?;
    source.not_namespaces = fields.strings("notNamespaces")?;
    source.ip_blocks = fields.strings("ipBlocks")?;
    source.not_ip_blocks = fields.strings("notIpBlocks")?;
    source.remote_ip_blocks = fields.strings("remoteIpBlocks")?;
    source.not_remote_ip_blocks = fields.strings("notRemoteIpBlocks")?;
    source.service_accounts = fields.strings("serviceAccounts")?;
    source.not_service_accounts = fields.strings("notServiceAccounts")?;
    source.trust_domains = fields.strings("trustDomains")?;
    source.not_trust_domains = fields.strings("notTrustDomains")?;
    fields.finish()?;
    Ok(source)
}

fn operation(at: &Cursor<'_>) -> Result<Operation> {
    let mut fields = at.fields()?;
    let mut operation = Operation::default();
    operation.hosts = fields.strings("hosts")?;
    operation.not_hosts = fields.strings("notHosts")?;
    operation.ports = fields.strings("ports")?;
    operation.not_ports = fields.strings("notPorts")?;
    operation.methods = fields.strings("methods")?;
    operation.not_methods = fields.strings("notMethods")?;
    operation.paths = fields.strings("paths")?;
    operation.not_paths = fields.strings("notPaths")?;
    fields.finish()?;
    Ok(operation)
}

/// The mode of a PeerAuthentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum MtlsMode {
    #[default]
    Unset,
    /// Plaintext is accepted: PERMISSIVE, and DISABLE, which in an ambient mesh is no more than that.
    Open,
    Strict,
}

#[derive(Debug, Clone)]
pub(crate) struct PeerAuthentication {
    pub(crate) meta: Meta,
    pub(crate) selector: Labels,
    pub(crate) mode: MtlsMode,
    pub(crate) ports: BTreeMap<u16, MtlsMode>,
}

impl PeerAuthentication {
    pub(crate) fn read(meta: Meta, fields: &mut Fields<'_>) -> Result<Self> {
        let mut read = Self {
            meta,
            selector: Labels::new(),
            mode: MtlsMode::Unset,
            ports: BTreeMap::new(),
        };
        let Some(at) = fields.get("spec") else {
            return Ok(read);
        };
        let mut spec = at.fields()?;
        read.selector = spec.map("selector", selector)?.unwrap_or_default();
        read.mode = spec.map("mtls", mtls)?.unwrap_or_default();
        if let Some(ports) = spec.get("portLevelMtls") {
            for (key, value) in ports.entries()? {
                let port = match key.parse() {
                    Ok(0) | Err(_) => {
                        return Err(value.invalid(format_args!(
                            "expected a port from 1 to 65535 as the key, found {key:?}"
                        )));
                    }
                    Ok(port) => port,
                };
                let mode = if value.is_null() {
                    MtlsMode::Unset
                } else {
                    mtls(&value)?
                };
                read.ports.insert(port, mode);
            }
        }
        spec.finish()?;
        if read.selector.is_empty() && !read.ports.is_empty() {
            return Err(at.invalid_below("portLevelMtls", "needs a selector"));
        }
        Ok(read)
    }
}

fn mtls(at: &Cursor<'_>) -> Result<MtlsMode> {
    let mut fields = at.fields()?;
    let mode = fields.map("mode", |at| {
        at.one_of(&[
            ("UNSET", MtlsMode::Unset),
            ("DISABLE", MtlsMode::Open),
            ("PERMISSIVE", MtlsMode::Open),
            ("STRICT", MtlsMode::Strict),
        ])
    })?;
    fields.finish()?;
    Ok(mode.unwrap_or_default())
}

#[derive(Debug, Clone)]
pub(crate) struct RequestAuthentication {
    pub(crate) meta: Meta,
    pub(crate) attachment: Attachment,
    pub(crate) rules: Vec<JwtRule>,
}

impl RequestAuthentication {
    pub(crate) fn read(meta: Meta, fields: &mut Fields<'_>, settings: &Settings) -> Result<Self> {
        let mut attachment = Attachment::Everything;
        let mut rules = Vec::new();
        if let Some(spec) = fields.get("spec") {
            let mut spec = spec.fields()?;
            attachment = Attachment::read(&meta, &mut spec, settings)?;
            rules = spec.list("jwtRules", jwt_rule)?;
            spec.finish()?;
        }
        Ok(Self {
            meta,
            attachment,
            rules,
        })
    }
}

fn jwt_rule(at: &Cursor<'_>) -> Result<JwtRule> {
    let mut fields = at.fields()?;
    let mut rule = JwtRule::new(fields.need("issuer")?.nonempty()?)
        .with_audiences(fields.texts("audiences")?)
        .with_space_delimited_claims(fields.texts("spaceDelimitedClaims")?);
    let mut locations = fields.list("fromHeaders", |at| {
        let mut fields = at.fields()?;
        let name = header(&fields.need("name")?)?;
        let prefix = fields.text("prefix")?;
        fields.finish()?;
        Ok(TokenLocation::Header { name, prefix })
    })?;
    locations.extend(fields.list("fromParams", |at| {
        at.nonempty().map(TokenLocation::QueryParam)
    })?);
    locations.extend(fields.list("fromCookies", |at| at.nonempty().map(TokenLocation::Cookie))?);
    if !locations.is_empty() {
        rule = rule.with_locations(locations);
    }
    let inline = fields.map("jwks", Cursor::nonempty)?;
    let mut uri = fields.map("jwksUri", Cursor::nonempty)?;
    // An older spelling that Istio still reads.
    if let Some(old) = fields.map("jwks_uri", Cursor::nonempty)? {
        uri = Some(old);
    }
    match (inline, uri) {
        (Some(_), Some(_)) => {
            return Err(at.invalid_below("jwks", "excludes jwksUri: expected only one of the two"));
        }
        (Some(keys), None) => rule = rule.with_jwks(Jwks::Inline(keys)),
        (None, Some(uri)) => rule = rule.with_jwks(Jwks::Uri(uri)),
        (None, None) => {}
    }
    if let Some(forward) = fields.map("forwardOriginalToken", Cursor::bool)? {
        rule = rule.with_forward_original_token(forward);
    }
    if let Some(name) = fields.map("outputPayloadToHeader", header)? {
        rule = rule.with_output_payload_to_header(name);
    }
    rule = rule.with_output_claims_to_headers(fields.list("outputClaimToHeaders", |at| {
        let mut fields = at.fields()?;
        let pair = (
            header(&fields.need("header")?)?,
            fields.need("claim")?.nonempty()?,
        );
        fields.finish()?;
        Ok(pair)
    })?);
    if let Some(timeout) = fields.map("timeout", duration)? {
        rule = rule.with_timeout(timeout);
    }
    fields.finish()?;
    Ok(rule)
}

pub(crate) fn header(at: &Cursor<'_>) -> Result<HeaderName> {
    at.parse("the name of an HTTP header")
}

/// Methods compare with case, so `get` matches no `GET`.
pub(super) fn lower_case_methods(at: &Cursor<'_>) -> Vec<Invalid> {
    let mut found = Vec::new();
    // What cannot be read has been said.
    let _ = at.fields().and_then(|mut fields| {
        let Some(spec) = fields.get("spec") else {
            return Ok(());
        };
        for rule in spec.fields()?.list("rules", |rule| Ok(rule.clone()))? {
            for to in rule.fields()?.list("to", |to| Ok(to.clone()))? {
                let Some(operation) = to.fields()?.get("operation") else {
                    continue;
                };
                for list in ["methods", "notMethods"] {
                    for method in operation
                        .fields()?
                        .list(list, |method| Ok(method.clone()))?
                    {
                        let text = method.str()?;
                        let upper = text.to_ascii_uppercase();
                        if text != upper {
                            let message = format!(
                                "methods compare with case, found {text:?}; expected {upper:?}?"
                            );
                            found.push(method.invalid(message));
                        }
                    }
                }
            }
        }
        Ok(())
    });
    found
}

impl AuthorizationPolicy {
    /// Denies everything that the policy selects, or its namespace when even that cannot be read.
    /// One that would only be reported has no stand-in.
    pub(crate) fn closed(
        meta: Meta,
        fields: &mut Fields<'_>,
        settings: &Settings,
        why: &str,
    ) -> Option<Self> {
        if meta.annotation("istio.io/dry-run") == Some("true") {
            return None;
        }
        let attachment = Attachment::read_or_everything(&meta, fields, settings);
        let name = PolicyName::new(Arc::clone(&meta.namespace), Arc::clone(&meta.name));
        Some(Self {
            meta,
            attachment,
            policy: Arc::new(Policy::unreadable(name, why)),
        })
    }
}

impl PeerAuthentication {
    /// STRICT for everything that the object selects, or its namespace when even that cannot be read.
    pub(crate) fn closed(meta: Meta, fields: &mut Fields<'_>) -> Self {
        let selector = fields
            .get("spec")
            .and_then(|spec| spec.fields().ok()?.map("selector", selector).ok()?)
            .unwrap_or_default();
        Self {
            meta,
            selector,
            mode: MtlsMode::Strict,
            ports: BTreeMap::new(),
        }
    }
}

impl RequestAuthentication {
    /// Refuses tokens where they usually are: no token has the issuer of its one rule.
    pub(crate) fn closed(meta: Meta, fields: &mut Fields<'_>, settings: &Settings) -> Self {
        let attachment = Attachment::read_or_everything(&meta, fields, settings);
        Self {
            meta,
            attachment,
            rules: vec![JwtRule::new("")],
        }
    }
}
