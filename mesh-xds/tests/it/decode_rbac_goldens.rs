//! Istio's own conversions, decoded: the RBAC that istiod makes of policies, and those policies as
//! manifests have them, decide alike.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authz::matcher::{PathMatch, StringMatch};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, RequestAttributes};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::Update;
use serde_json::Value;

use crate::decode_listeners::{any, decode, http, http_filter};
use crate::proto::envoy::config::core::v3 as core;
use crate::proto::envoy::config::rbac::v3 as rbac;
use crate::proto::envoy::config::route::v3 as route;
use crate::proto::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use crate::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::proto::envoy::r#type::matcher::v3 as matchers;
use crate::proto::type_url;
use crate::require;
use crate::serve_listeners;

/// Requests that each file is tried with.
const SAMPLES: usize = 600;

#[test]
fn what_istiod_renders_decides_as_the_policy() {
    let Some(data) = require::data("what_istiod_renders_decides_as_the_policy") else {
        return;
    };
    let (mut decided, mut varied) = ([0; 2], 0);
    for (name, policies, filters) in goldens(&data.join("istio/authz/http")) {
        let filters = filters.iter().map(|filter| {
            let filter = http_rbac::Rbac {
                rules: Some(rbac_of(filter)),
                ..Default::default()
            };
            http_filter("rbac", any(type_url::HTTP_RBAC, &filter))
        });
        let listener = decode(&http(filters.collect()));
        assert_eq!(listener.closed(), None, "{name}");
        let (done, differing) = compare(&name, &policies, listener.policies());
        decided = [0, 1].map(|at| decided[at] + done[at]);
        varied += differing;
    }
    assert!(decided.iter().all(|count| *count > SAMPLES), "{decided:?}");
    assert!(varied > 20, "{varied}");
}

/// The same policies as our own control plane renders them.
#[tokio::test]
async fn what_we_render_decides_as_the_policy() {
    let Some(data) = require::data("what_we_render_decides_as_the_policy") else {
        return;
    };
    let (mut decided, mut varied) = ([0; 2], 0);
    for (name, policies, _) in goldens(&data.join("istio/authz/http")) {
        let theirs = serve_listeners::rendered(&policies).await;
        assert_eq!(theirs.closed(), None, "{name}");
        let (done, differing) = compare(&name, &policies, theirs.policies());
        decided = [0, 1].map(|at| decided[at] + done[at]);
        varied += differing;
    }
    assert!(decided.iter().all(|count| *count > SAMPLES), "{decided:?}");
    assert!(varied > 20, "{varied}");
}

/// Over samples, two sets of policies decide alike, and each condition is in both. Counts what is refused
/// and what is allowed, and the conditions that say both.
pub(crate) fn compare(
    name: &str,
    ours: &[Arc<Policy>],
    theirs: &[Arc<Policy>],
) -> ([usize; 2], usize) {
    let atoms = [atoms(ours), atoms(theirs)];
    let samples = Pool::of(atoms.iter().flatten()).samples();
    let [ours_set, theirs_set] = [ours, theirs].map(|all| PolicySet::new(all.iter().cloned()));
    let mut decided = [0; 2];
    for sample in &samples {
        let ours = sample.allowed(&ours_set);
        assert_eq!(ours, sample.allowed(&theirs_set), "{name}: {sample:?}");
        decided[usize::from(ours)] += 1;
    }
    // Whole rules of the large files can hardly match: so each condition by itself as well.
    let [ours, theirs] = atoms.map(|atoms| columns(&atoms, &samples));
    assert!(ours == theirs, "{name}: conditions differ");
    let varied = ours
        .iter()
        .filter(|column| column.contains(&true) && column.contains(&false));
    (decided, varied.count())
}

type Golden = (String, Vec<Arc<Policy>>, Vec<Value>);

fn goldens(folder: &Path) -> Vec<Golden> {
    let mut files: BTreeMap<String, (Option<PathBuf>, Vec<PathBuf>)> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if let Some(name) = stem.strip_suffix("-in") {
            files.entry(name.to_owned()).or_default().0 = Some(path);
        } else {
            let (name, _) = stem.rsplit_once("-out").unwrap();
            files.entry(name.to_owned()).or_default().1.push(path);
        }
    }
    let golden = |(name, (input, mut outputs)): (String, (Option<PathBuf>, Vec<PathBuf>))| {
        outputs.sort();
        let filter = |path: &PathBuf| {
            let value: Value = serde_saphyr::from_str(&read(path)).unwrap();
            value["typedConfig"]["rules"].clone()
        };
        let policies = policies(&name, read(&input.unwrap()));
        let filters = outputs.iter().map(filter).collect();
        (name, policies, filters)
    };
    files.into_iter().map(golden).collect()
}

/// Identities cannot hold the brackets that the files number their names with: `rule[0]` is `rule-0`.
fn read(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('[') {
        let (before, after) = rest.split_at(at);
        let inner = after[1..]
            .split_once(']')
            .map(|(inner, rest)| (inner.trim_end_matches('\\'), rest));
        match inner {
            Some((number, after))
                if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                plain.push_str(before.trim_end_matches('\\'));
                plain.push('-');
                plain.push_str(number);
                rest = after;
            }
            _ => {
                plain.push_str(before);
                plain.push('[');
                rest = &after[1..];
            }
        }
    }
    plain + rest
}

/// The mesh that a file was converted for, and its policies.
fn policies(name: &str, text: String) -> Vec<Arc<Policy>> {
    let mut settings = Settings::new();
    let aliases: &[&str] = match name {
        "simple-policy-td-aliases" => &["cluster.local"],
        "simple-policy-multiple-td-aliases" => &["cluster.local", "some-td"],
        "simple-policy-principal-with-wildcard" => &["foobar"],
        _ => &[],
    };
    if !aliases.is_empty() {
        let aliases = aliases.iter().map(|alias| Arc::from(*alias)).collect();
        settings = settings
            .with_trust_domain("td1")
            .with_trust_domain_aliases(aliases);
    }
    let loaded = Loader::new(settings).load(vec![("in.yaml".into(), text.into())]);
    assert!(
        loaded.problems().is_empty(),
        "{name}: {:?}",
        loaded.problems()
    );
    let policies = loaded
        .batch()
        .updates()
        .iter()
        .filter_map(|update| match update {
            Update::Policy(policy) => Some(Arc::clone(policy.policy())),
            _ => None,
        });
    policies.collect()
}

// The filter as protobuf.

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn list<T>(value: &Value, read: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().unwrap().iter().map(read).collect()
}

/// The one field of a message that is one of several.
fn only(value: &Value) -> (&str, &Value) {
    let (name, value) = value.as_object().unwrap().iter().next().unwrap();
    (name, value)
}

fn rbac_of(rules: &Value) -> rbac::Rbac {
    use rbac::rbac::Action;
    let action = match rules["action"].as_str() {
        None => Action::Allow,
        Some("DENY") => Action::Deny,
        Some("LOG") => Action::Log,
        Some(other) => panic!("{other}"),
    };
    let policies = rules["policies"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, policy)| {
            let policy = rbac::Policy {
                permissions: list(&policy["permissions"], permission),
                principals: list(&policy["principals"], principal),
                ..Default::default()
            };
            (name.clone(), policy)
        });
    rbac::Rbac {
        action: action.into(),
        policies: policies.collect(),
        ..Default::default()
    }
}

fn permission(value: &Value) -> rbac::Permission {
    use rbac::permission::{Rule, Set};
    let (kind, value) = only(value);
    let set = || Set {
        rules: list(&value["rules"], permission),
    };
    let rule = match kind {
        "any" => Rule::Any(true),
        "andRules" => Rule::AndRules(set()),
        "orRules" => Rule::OrRules(set()),
        "notRule" => Rule::NotRule(Box::new(permission(value))),
        "header" => Rule::Header(header(value)),
        "urlPath" => Rule::UrlPath(matchers::PathMatcher {
            rule: Some(matchers::path_matcher::Rule::Path(string(&value["path"]))),
        }),
        "uriTemplate" => {
            let path_template = text(&value["typedConfig"]["pathTemplate"]);
            let config = any(
                type_url::URI_TEMPLATE,
                &UriTemplateMatchConfig { path_template },
            );
            Rule::UriTemplate(core::TypedExtensionConfig {
                name: text(&value["name"]),
                typed_config: Some(config),
            })
        }
        "destinationPort" => Rule::DestinationPort(value.as_u64().unwrap() as u32),
        "destinationIp" => Rule::DestinationIp(cidr(value)),
        "requestedServerName" => Rule::RequestedServerName(string(value)),
        "metadata" => Rule::Metadata(metadata(value)),
        other => panic!("{other}"),
    };
    rbac::Permission { rule: Some(rule) }
}

fn principal(value: &Value) -> rbac::Principal {
    use rbac::principal::{Authenticated, Identifier, Set};
    let (kind, value) = only(value);
    let set = || Set {
        ids: list(&value["ids"], principal),
    };
    let identifier = match kind {
        "any" => Identifier::Any(true),
        "andIds" => Identifier::AndIds(set()),
        "orIds" => Identifier::OrIds(set()),
        "notId" => Identifier::NotId(Box::new(principal(value))),
        "authenticated" => {
            let principal_name = Some(string(&value["principalName"]));
            Identifier::Authenticated(Authenticated { principal_name })
        }
        "header" => Identifier::Header(header(value)),
        "directRemoteIp" => Identifier::DirectRemoteIp(cidr(value)),
        "remoteIp" => Identifier::RemoteIp(cidr(value)),
        "metadata" => Identifier::Metadata(metadata(value)),
        other => panic!("{other}"),
    };
    rbac::Principal {
        identifier: Some(identifier),
    }
}

fn header(value: &Value) -> route::HeaderMatcher {
    use route::header_matcher::HeaderMatchSpecifier as Specifier;
    let specifier = match value.get("stringMatch") {
        Some(matcher) => Specifier::StringMatch(string(matcher)),
        None => Specifier::PresentMatch(value["presentMatch"].as_bool().unwrap()),
    };
    route::HeaderMatcher {
        name: text(&value["name"]),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

fn cidr(value: &Value) -> core::CidrRange {
    core::CidrRange {
        address_prefix: text(&value["addressPrefix"]),
        prefix_len: Some(value["prefixLen"].as_u64().unwrap() as u32),
    }
}

fn string(value: &Value) -> matchers::StringMatcher {
    use matchers::string_matcher::MatchPattern;
    let pattern = |name: &str, make: fn(String) -> MatchPattern| {
        value.get(name).map(|value| make(text(value)))
    };
    let regex = || {
        let regex = text(&value["safeRegex"]["regex"]);
        MatchPattern::SafeRegex(matchers::RegexMatcher {
            regex,
            engine_type: None,
        })
    };
    let pattern = pattern("exact", MatchPattern::Exact)
        .or_else(|| pattern("prefix", MatchPattern::Prefix))
        .or_else(|| pattern("suffix", MatchPattern::Suffix))
        .unwrap_or_else(regex);
    matchers::StringMatcher {
        ignore_case: value["ignoreCase"] == true,
        match_pattern: Some(pattern),
    }
}

fn metadata(value: &Value) -> matchers::MetadataMatcher {
    let segment = |value: &Value| matchers::metadata_matcher::PathSegment {
        segment: Some(matchers::metadata_matcher::path_segment::Segment::Key(
            text(&value["key"]),
        )),
    };
    matchers::MetadataMatcher {
        filter: text(&value["filter"]),
        path: list(&value["path"], segment),
        value: Some(value_matcher(&value["value"])),
        invert: false,
    }
}

fn value_matcher(value: &Value) -> matchers::ValueMatcher {
    use matchers::value_matcher::MatchPattern;
    let (kind, value) = only(value);
    let pattern = match kind {
        "stringMatch" => MatchPattern::StringMatch(string(value)),
        "orMatch" => MatchPattern::OrMatch(matchers::OrMatcher {
            value_matchers: list(&value["valueMatchers"], value_matcher),
        }),
        "listMatch" => {
            let one = Box::new(value_matcher(&value["oneOf"]));
            let pattern = Some(matchers::list_matcher::MatchPattern::OneOf(one));
            MatchPattern::ListMatch(Box::new(matchers::ListMatcher {
                match_pattern: pattern,
            }))
        }
        other => panic!("{other}"),
    };
    matchers::ValueMatcher {
        match_pattern: Some(pattern),
    }
}

// What both are asked.

/// The single conditions of policies.
fn atoms(policies: &[Arc<Policy>]) -> Vec<Matcher> {
    fn walk(expr: &Expr, atoms: &mut Vec<Matcher>) {
        match expr {
            Expr::All(parts) | Expr::Any(parts) => parts.iter().for_each(|part| walk(part, atoms)),
            Expr::Not(part) => walk(part, atoms),
            Expr::Is(matcher) => atoms.push(matcher.clone()),
            other => panic!("{other:?}"),
        }
    }
    let mut atoms = Vec::new();
    let rules = policies.iter().flat_map(|policy| policy.rules());
    rules.for_each(|rule| walk(rule.when(), &mut atoms));
    atoms
}

/// What each condition says over all samples.
fn columns(atoms: &[Matcher], samples: &[Sample]) -> BTreeSet<Vec<bool>> {
    let column = |atom: &Matcher| {
        let rules = vec![Rule::new(Expr::Is(atom.clone()))];
        let policy = Policy::new(PolicyName::new("", "one"), Action::Allow, rules);
        let set = PolicySet::new([Arc::new(policy)]);
        samples.iter().map(|sample| sample.allowed(&set)).collect()
    };
    atoms.iter().map(column).collect()
}

#[derive(Debug)]
struct Sample {
    caller: Option<Identity>,
    source: SocketAddr,
    destination: SocketAddr,
    sni: Option<String>,
    method: Method,
    host: String,
    path: String,
    headers: HeaderMap,
    remote: Option<std::net::IpAddr>,
}

impl Sample {
    fn allowed(&self, set: &PolicySet) -> bool {
        let mut request =
            RequestAttributes::new(&self.method, Some(&self.host), &self.path, &self.headers);
        if let Some(remote) = self.remote {
            request = request.with_remote_ip(remote);
        }
        let attributes = Attributes::new(self.source, self.destination)
            .with_identity(Attribute::from(self.caller.as_ref()))
            .with_sni(Attribute::from(self.sni.as_deref()))
            .with_request(request);
        set.evaluate(&attributes).is_allowed()
    }
}

/// Values that conditions ask for, and some that nearly are those.
#[derive(Default)]
struct Pool {
    domains: Vec<String>,
    namespaces: Vec<String>,
    accounts: Vec<String>,
    hosts: Vec<String>,
    methods: Vec<String>,
    paths: Vec<String>,
    snis: Vec<String>,
    headers: Vec<(HeaderName, String)>,
    ips: Vec<std::net::IpAddr>,
    ports: Vec<u16>,
}

fn likes(value: &StringMatch) -> Vec<String> {
    match value {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => {
            let all = [
                text.to_string(),
                format!("{text}z"),
                format!("z{text}"),
                text.to_uppercase(),
            ];
            all.into_iter().filter(|text| !text.is_empty()).collect()
        }
        _ => Vec::new(),
    }
}

impl Pool {
    fn of<'a>(atoms: impl Iterator<Item = &'a Matcher>) -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let mut pool = Self {
            domains: texts(&["td1", "cluster.local", "other", "foobar"]),
            namespaces: texts(&["other", "foo"]),
            accounts: texts(&["other"]),
            hosts: texts(&["other.com", ""]),
            methods: texts(&["GET", "POST"]),
            paths: texts(&["/", "/other?/exact"]),
            snis: texts(&["other.com"]),
            headers: vec![(HeaderName::from_static("x-other"), "v".into())],
            ips: ["10.11.12.13", "fd00::1"]
                .map(|ip| ip.parse().unwrap())
                .to_vec(),
            ports: vec![4321],
        };
        atoms.for_each(|atom| pool.add(atom));
        pool
    }

    fn add(&mut self, atom: &Matcher) {
        match atom {
            Matcher::Principal(value) => {
                for principal in likes(value) {
                    let mut parts = principal.split('/');
                    self.domains.extend(parts.next().map(str::to_owned));
                    while let Some(part) = parts.next() {
                        match part {
                            "ns" => self.namespaces.extend(parts.next().map(str::to_owned)),
                            "sa" => self.accounts.extend(parts.next().map(str::to_owned)),
                            _ => {}
                        }
                    }
                    self.accounts
                        .extend(principal.rsplit('/').next().map(str::to_owned));
                }
            }
            Matcher::Namespace(value) => self.namespaces.extend(likes(value)),
            Matcher::ServiceAccount { namespace, name } => {
                self.namespaces.push(namespace.to_string());
                self.accounts.push(name.to_string());
            }
            Matcher::TrustDomain(value) => self.domains.extend(likes(value)),
            Matcher::SourceIp(net) | Matcher::DestinationIp(net) | Matcher::RemoteIp(net) => {
                self.ips.push(net.addr());
            }
            Matcher::DestinationPort(port) => self.ports.push(*port),
            Matcher::Sni(value) => self.snis.extend(likes(value)),
            Matcher::Host(value) => self.hosts.extend(likes(value)),
            Matcher::Method(value) => self.methods.extend(likes(value)),
            Matcher::Path(PathMatch::String(value)) => self.paths.extend(likes(value)),
            Matcher::Path(PathMatch::Template(template)) => {
                for (many, one) in [("q", "q"), ("", "q"), ("q/r", "q/r")] {
                    let path = template.as_str().replace("{**}", many).replace("{*}", one);
                    self.paths.push(path);
                }
            }
            Matcher::Header { name, value } => {
                self.headers.push((name.clone(), String::new()));
                self.headers
                    .extend(likes(value).into_iter().map(|value| (name.clone(), value)));
            }
            _ => {}
        }
    }

    fn samples(&self) -> Vec<Sample> {
        // A linear congruential generator: the same choices in every run.
        let mut state = 0x9e37_79b9_u64;
        let mut roll = |sides: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % sides
        };
        let mut sample = || {
            let mut pick = |of: &[String]| of[roll(of.len())].clone();
            let parts = [
                pick(&self.domains),
                pick(&self.namespaces),
                pick(&self.accounts),
            ];
            let (host, method, path, sni) = (
                pick(&self.hosts),
                pick(&self.methods),
                pick(&self.paths),
                pick(&self.snis),
            );
            let mut headers = HeaderMap::new();
            for _ in 0..roll(3) {
                let (name, value) = &self.headers[roll(self.headers.len())];
                headers.insert(name, HeaderValue::try_from(value).unwrap());
            }
            let mut ip = || self.ips[roll(self.ips.len())];
            let (source, destination, remote) = (ip(), ip(), ip());
            Sample {
                caller: Identity::new(&parts[0], &parts[1], &parts[2])
                    .ok()
                    .filter(|_| roll(8) > 0),
                source: SocketAddr::new(source, 1000),
                destination: SocketAddr::new(destination, self.ports[roll(self.ports.len())]),
                sni: Some(sni).filter(|_| roll(4) > 0),
                method: method.parse().unwrap(),
                host,
                path,
                headers,
                remote: Some(remote).filter(|_| roll(2) > 0),
            }
        };
        (0..SAMPLES).map(|_| sample()).collect()
    }
}
