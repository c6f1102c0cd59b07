//! A Kubernetes API server, as far as istiod needs one: objects in memory, which are listed, watched and
//! written, and tokens. It validates nothing and believes everybody.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::service_fn;

/// One resource of a group: `("", "pods")`.
type Resource = (String, String);
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What a URL names.
#[derive(Debug, Clone)]
struct Place {
    resource: Resource,
    api_version: String,
    namespace: Option<String>,
    name: Option<String>,
    part: Option<String>,
}

impl Place {
    fn new(path: &str) -> Option<Self> {
        let mut words = path.split('/').skip(1);
        let (group, version) = match words.next()? {
            "api" => (String::new(), words.next()?.to_owned()),
            "apis" => (words.next()?.to_owned(), words.next()?.to_owned()),
            _ => return None,
        };
        let mut rest: Vec<String> = words.map(str::to_owned).collect();
        let namespaced = rest.len() > 2 && rest[0] == "namespaces";
        let namespace = namespaced.then(|| rest.drain(..2).nth(1)).flatten();
        let mut rest = rest.into_iter();
        let resource = rest.next()?;
        let api_version = match &*group {
            "" => version,
            group => format!("{group}/{version}"),
        };
        Some(Self {
            resource: (group, resource),
            api_version,
            namespace,
            name: rest.next(),
            part: rest.next(),
        })
    }

    fn kind(&self) -> &'static str {
        let known = KINDS
            .iter()
            .find(|(resource, _)| *resource == self.resource.1);
        known.map_or("Unknown", |(_, kind)| kind)
    }
}

/// Clients that know no type of their own go by the kind, also of an empty list.
const KINDS: [(&str, &str); 27] = [
    ("authorizationpolicies", "AuthorizationPolicy"),
    ("configmaps", "ConfigMap"),
    ("customresourcedefinitions", "CustomResourceDefinition"),
    ("destinationrules", "DestinationRule"),
    ("endpointslices", "EndpointSlice"),
    ("envoyfilters", "EnvoyFilter"),
    ("gateways", "Gateway"),
    ("ingressclasses", "IngressClass"),
    ("ingresses", "Ingress"),
    (
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
    ),
    ("namespaces", "Namespace"),
    ("nodes", "Node"),
    ("peerauthentications", "PeerAuthentication"),
    ("pods", "Pod"),
    ("proxyconfigs", "ProxyConfig"),
    ("requestauthentications", "RequestAuthentication"),
    ("secrets", "Secret"),
    ("serviceaccounts", "ServiceAccount"),
    ("serviceentries", "ServiceEntry"),
    ("services", "Service"),
    ("sidecars", "Sidecar"),
    ("telemetries", "Telemetry"),
    (
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
    ),
    ("virtualservices", "VirtualService"),
    ("wasmplugins", "WasmPlugin"),
    ("workloadentries", "WorkloadEntry"),
    ("workloadgroups", "WorkloadGroup"),
];

struct Change {
    revision: u64,
    happened: &'static str,
    resource: Resource,
    object: Value,
}

#[derive(Default)]
struct Objects {
    revision: u64,
    kept: BTreeMap<(Resource, String, String), Value>,
    log: Vec<Change>,
}

impl Objects {
    /// Enters a version of an object, and what has happened to it.
    fn put(&mut self, place: &Place, mut object: Value) -> Value {
        self.revision += 1;
        let key = key(place, &object);
        let old = self.kept.get(&key);
        let revision = self.revision.to_string();
        let uid = old.map_or_else(
            || json!(format!("uid-{revision}")),
            |old| old["metadata"]["uid"].clone(),
        );
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(revision);
        metadata["uid"] = uid;
        metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        if !key.1.is_empty() {
            metadata["namespace"] = json!(key.1);
        }
        metadata["name"] = json!(key.2);
        object["apiVersion"] = json!(place.api_version);
        if place.resource.1 == "services" && object["spec"]["clusterIP"].is_null() {
            let old = old.map(|old| old["spec"]["clusterIP"].clone());
            let own = old.unwrap_or_else(|| {
                json!(format!(
                    "10.96.{}.{}",
                    self.revision >> 8 & 255,
                    self.revision & 255
                ))
            });
            object["spec"]["clusterIPs"] = json!([own]);
            object["spec"]["clusterIP"] = own;
        }
        if object["kind"].is_null() {
            object["kind"] = json!(place.kind());
        }
        self.log.push(Change {
            revision: self.revision,
            happened: if old.is_some() { "MODIFIED" } else { "ADDED" },
            resource: place.resource.clone(),
            object: object.clone(),
        });
        self.kept.insert(key, object.clone());
        object
    }

    fn get(&self, place: &Place) -> Option<&Value> {
        self.kept.get(&key(place, &Value::Null))
    }

    /// A namespace goes with all that is in it, at once.
    fn remove(&mut self, place: &Place) -> Option<Value> {
        let key = key(place, &Value::Null);
        if place.resource.1 == "namespaces" {
            let inside = self.kept.keys().filter(|inside| inside.1 == key.2);
            for inside in inside.cloned().collect::<Vec<_>>() {
                self.remove_at(inside);
            }
        }
        self.remove_at(key)
    }

    fn remove_at(&mut self, key: (Resource, String, String)) -> Option<Value> {
        let object = self.kept.remove(&key)?;
        self.revision += 1;
        self.log.push(Change {
            revision: self.revision,
            happened: "DELETED",
            resource: key.0,
            object: object.clone(),
        });
        Some(object)
    }
}

fn key(place: &Place, object: &Value) -> (Resource, String, String) {
    let metadata = &object["metadata"];
    let text = |of_url: &Option<String>, of_object: &Value| {
        let of_object = || of_object.as_str().map(str::to_owned);
        of_url.clone().or_else(of_object).unwrap_or_default()
    };
    (
        place.resource.clone(),
        text(&place.namespace, &metadata["namespace"]),
        text(&place.name, &metadata["name"]),
    )
}

/// What a list or a watch asks for.
struct Wanted {
    place: Place,
    fields: String,
    labels: String,
    metadata_alone: bool,
}

impl Wanted {
    fn is(&self, resource: &Resource, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let namespace = self.place.namespace.as_deref();
        let terms = |selector: &str| -> Vec<String> {
            let terms = selector.split(',').filter(|term| !term.is_empty());
            terms.map(str::to_owned).collect()
        };
        *resource == self.place.resource
            && namespace.is_none_or(|namespace| metadata["namespace"] == namespace)
            && terms(&self.fields)
                .iter()
                .all(|term| match term.split_once('=') {
                    Some(("metadata.name", name)) => metadata["name"] == name,
                    _ => true,
                })
            && terms(&self.labels).iter().all(|term| {
                let labels = &metadata["labels"];
                match (term.split_once("!="), term.split_once('=')) {
                    (Some((label, value)), _) => labels[label] != value,
                    (None, Some((label, value))) => labels[label] == value,
                    (None, None) if term.starts_with('!') => labels[&term[1..]].is_null(),
                    (None, None) => !labels[&**term].is_null(),
                }
            })
    }

    /// The object in the version and form that is asked for.
    fn form(&self, object: &Value) -> Value {
        if self.metadata_alone {
            let metadata = &object["metadata"];
            return json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        }
        let mut object = object.clone();
        object["apiVersion"] = json!(self.place.api_version);
        object
    }

    fn list(&self, objects: &Objects) -> Value {
        let items = objects.kept.iter();
        let items = items.filter(|((resource, ..), object)| self.is(resource, object));
        let items: Vec<_> = items.map(|(_, object)| self.form(object)).collect();
        let (kind, version) = match self.metadata_alone {
            true => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
            false => (
                format!("{}List", self.place.kind()),
                &*self.place.api_version,
            ),
        };
        let metadata = json!({"resourceVersion": objects.revision.to_string()});
        json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items})
    }
}

/// The server. It ends with the runtime.
pub(crate) struct Kubernetes {
    objects: Mutex<Objects>,
    revisions: watch::Sender<u64>,
}

impl Kubernetes {
    /// Where it listens, in plain HTTP.
    pub(crate) async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let this = Arc::new(Self {
            objects: Mutex::default(),
            revisions: watch::channel(0).0,
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = Arc::clone(&this);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let this = Arc::clone(&this);
                        async move { Ok::<_, Infallible>(this.answer(request).await) }
                    });
                    let service = hyper_util::service::TowerToHyperService::new(service);
                    let serving = hyper::server::conn::http1::Builder::new();
                    // A client that goes away is its own affair.
                    let _ = serving
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        address
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if path == "/version" {
            let version = json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0"});
            return reply(StatusCode::OK, &version);
        }
        let Some(place) = Place::new(path) else {
            return fail(StatusCode::NOT_FOUND, "NotFound", path);
        };
        let said = |name: &header::HeaderName| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        if head.method == Method::GET {
            let query = |name: &str| -> String {
                let query = head.uri.query().unwrap_or_default();
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                let found = pairs.find(|(key, _)| *key == name);
                found.map(|(_, value)| decoded(value)).unwrap_or_default()
            };
            let wanted = Wanted {
                fields: query("fieldSelector"),
                labels: query("labelSelector"),
                metadata_alone: said(&header::ACCEPT).contains("as=PartialObjectMetadata"),
                place,
            };
            return match (&wanted.place.name, query("watch").as_str()) {
                (_, "true" | "1") if query("sendInitialEvents") == "true" => fail(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "Invalid",
                    "sendInitialEvents",
                ),
                (_, "true" | "1") => {
                    let since = query("resourceVersion").parse().unwrap_or(0);
                    self.watch(wanted, since)
                }
                (Some(_), _) => {
                    let objects = self.objects.lock().unwrap();
                    let found = objects.get(&wanted.place);
                    found.map_or_else(
                        || fail(StatusCode::NOT_FOUND, "NotFound", path),
                        |object| reply(StatusCode::OK, &wanted.form(object)),
                    )
                }
                (None, _) => reply(StatusCode::OK, &wanted.list(&self.objects.lock().unwrap())),
            };
        }
        let body = body.collect().await.map(|body| body.to_bytes());
        let given: Value = body
            .ok()
            .and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_default();
        let answer = self.write(&head.method, &said(&header::CONTENT_TYPE), &place, given);
        let revision = self.objects.lock().unwrap().revision;
        self.revisions.send_replace(revision);
        match answer {
            Ok(object) => reply(StatusCode::OK, &object),
            Err((status, reason)) => fail(status, reason, path),
        }
    }

    /// Of the writes what istiod and the tests do; a patch in JSON's own form is not among it.
    fn write(
        &self,
        method: &Method,
        form: &str,
        place: &Place,
        given: Value,
    ) -> Result<Value, (StatusCode, &'static str)> {
        let mut objects = self.objects.lock().unwrap();
        let missing = (StatusCode::NOT_FOUND, "NotFound");
        let of_status = place.part.as_deref() == Some("status");
        if *method == Method::POST {
            return match (&*place.resource.1, place.part.as_deref()) {
                ("serviceaccounts", Some("token")) => Ok(token_of(place, given)),
                ("tokenreviews", _) => Ok(reviewed(given)),
                ("subjectaccessreviews" | "selfsubjectaccessreviews", _) => {
                    let mut given = given;
                    given["status"] = json!({"allowed": true});
                    Ok(given)
                }
                ("events", _) => Ok(given),
                _ if objects.kept.contains_key(&key(place, &given)) => {
                    Err((StatusCode::CONFLICT, "AlreadyExists"))
                }
                _ => Ok(objects.put(place, given)),
            };
        }
        if *method == Method::DELETE {
            return objects.remove(place).ok_or(missing);
        }
        let old = objects.get(place).cloned();
        let object = if of_status {
            let mut object = old.ok_or(missing)?;
            merge(&mut object["status"], &given["status"]);
            object
        } else if *method == Method::PUT {
            let old = old.ok_or(missing)?;
            let revision = &given["metadata"]["resourceVersion"];
            if !revision.is_null() && *revision != old["metadata"]["resourceVersion"] {
                return Err((StatusCode::CONFLICT, "Conflict"));
            }
            given
        } else if form.contains("apply-patch") {
            let mut given = given;
            if let Some(old) = old.filter(|_| given["status"].is_null()) {
                given["status"] = old["status"].clone();
            }
            given
        } else {
            let mut object = old.ok_or(missing)?;
            merge(&mut object, &given);
            object
        };
        Ok(objects.put(place, object))
    }

    fn watch(self: Arc<Self>, wanted: Wanted, since: u64) -> Response<Body> {
        let revisions = self.revisions.subscribe();
        let begin = (self, wanted, since, revisions);
        let events = stream::unfold(begin, |(this, wanted, since, mut revisions)| async move {
            let (lines, now) = loop {
                let (lines, now) = this.events(&wanted, since);
                if !lines.is_empty() {
                    break (lines, now);
                }
                revisions.changed().await.ok()?;
            };
            let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(lines)));
            Some((frame, (this, wanted, now, revisions)))
        });
        let body = StreamBody::new(events);
        let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
        answer.body(Body::new(body)).unwrap()
    }

    fn events(&self, wanted: &Wanted, since: u64) -> (String, u64) {
        let objects = self.objects.lock().unwrap();
        let events = objects.log.iter().filter(|change| {
            change.revision > since && wanted.is(&change.resource, &change.object)
        });
        let lines = events.map(|change| {
            let object = wanted.form(&change.object);
            format!("{}\n", json!({"type": change.happened, "object": object}))
        });
        (lines.collect(), objects.revision)
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let answer = Response::builder().status(status);
    let answer = answer.header(header::CONTENT_TYPE, "application/json");
    answer
        .body(Body::new(Full::new(Bytes::from(body.to_string()))))
        .unwrap()
}

fn fail(status: StatusCode, reason: &str, about: &str) -> Response<Body> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status.as_u16(),
        "reason": reason, "message": format!("{reason}: {about}"),
    });
    reply(status, &body)
}

/// As a JSON Merge Patch (RFC 7396).
fn merge(object: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut object[name], value);
        }
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| *first == b'%');
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = if hex.is_some() { &tail[2..] } else { tail };
        bytes.push(hex.unwrap_or(*first));
    }
    String::from_utf8(bytes).unwrap_or_default()
}

fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// A token says itself whose it is, and until when.
fn token_of(place: &Place, mut given: Value) -> Value {
    let life = given["spec"]["expirationSeconds"].as_u64().unwrap_or(3600);
    let bound = &given["spec"]["boundObjectRef"];
    let token = json!({
        "namespace": place.namespace, "account": place.name, "until": seconds() + life,
        "pod": bound["name"], "uid": bound["uid"],
    });
    given["status"] = json!({"token": token.to_string().replace(' ', "")});
    given
}

fn reviewed(mut given: Value) -> Value {
    let token = given["spec"]["token"].as_str().unwrap_or_default();
    let token: Value = serde_json::from_str(token).unwrap_or_default();
    let text = |name: &str| token[name].as_str().unwrap_or_default();
    let good = token["until"]
        .as_u64()
        .is_some_and(|until| seconds() < until);
    given["status"] = if good {
        json!({
            "authenticated": true,
            "audiences": given["spec"]["audiences"],
            "user": {
                "username": format!("system:serviceaccount:{}:{}", text("namespace"), text("account")),
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": [text("pod")],
                    "authentication.kubernetes.io/pod-uid": [text("uid")],
                },
            },
        })
    } else {
        json!({"authenticated": false, "error": "token has expired"})
    };
    given
}
