//! Joins objects to resources, as istiod does for an ambient mesh.

mod entries;
mod policies;
mod selectors;
mod services;
mod waypoints;
mod workloads;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Object;
use super::core::{EndpointSlice, Pod, Service};
use super::entries::{ServiceEntry, WorkloadEntry};
use super::gateway::Gateway;
use super::meta::{Labels, Meta};
use super::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use crate::file::settings::Settings;
use crate::model::{GatewayAddress, Locality, Update};
use policies::PeerModes;
use selectors::Selectors;

/// What objects make: resources, each with the index of the object that it comes from.
#[derive(Default)]
pub(crate) struct Assembled {
    pub(crate) resources: Vec<(usize, Update)>,
    /// Objects that are right and still make nothing, or nothing of use: the index, the field and the reason.
    pub(crate) idle: Vec<(usize, &'static str, String)>,
    /// Policies whose selector chooses nobody, and what to say of them.
    pub(crate) binds_nobody: Vec<(usize, &'static str)>,
    /// What an object asks for that does not exist: its index, the field and the message.
    pub(crate) dangling: Vec<(usize, String, String)>,
}

/// An object with its index.
type Numbered<'a, T> = (usize, &'a T);

/// All objects by kind, and what follows from them for others.
struct World<'a> {
    settings: &'a Settings,
    network: Arc<str>,
    namespaces: BTreeMap<Arc<str>, Labels>,
    /// The objects of `namespaces`.
    namespace_objects: Vec<Numbered<'a, Meta>>,
    nodes: HashMap<&'a str, Locality>,
    services: Vec<Numbered<'a, Service>>,
    slices: Vec<Numbered<'a, EndpointSlice>>,
    pods: Vec<Numbered<'a, Pod>>,
    workload_entries: Vec<Numbered<'a, WorkloadEntry>>,
    service_entries: Vec<Numbered<'a, ServiceEntry>>,
    authorization: Vec<Numbered<'a, AuthorizationPolicy>>,
    peer_authentication: Vec<Numbered<'a, PeerAuthentication>>,
    request_authentication: Vec<Numbered<'a, RequestAuthentication>>,
    gateways: BTreeMap<(&'a str, &'a str), Numbered<'a, Gateway>>,
    network_gateways: BTreeMap<Arc<str>, GatewayAddress>,
    service_selectors: Selectors<'a, Numbered<'a, Service>>,
    entry_selectors: Selectors<'a, &'a ServiceEntry>,
    policy_selectors: Selectors<'a, Numbered<'a, Meta>>,
    request_selectors: Selectors<'a, Numbered<'a, Meta>>,
    peer_modes: PeerModes<'a>,
}

/// Joins the objects.
pub(crate) fn assemble(objects: &[&Object], settings: &Settings) -> Assembled {
    let mut made = Assembled::default();
    let mut world = World::collect(objects, settings, &mut made);
    world.network_gateways = world.make_network_gateways(&mut made);
    world.make_services(&mut made);
    world.make_service_entries(&mut made);
    world.make_pods(&mut made);
    world.make_workload_entries(&mut made);
    world.make_slices(&mut made);
    world.make_policies(&mut made);
    world.name_missing_waypoints(&mut made);
    world.name_idle(objects, &mut made);
    made
}

impl<'a> World<'a> {
    fn collect(objects: &[&'a Object], settings: &'a Settings, made: &mut Assembled) -> Self {
        let mut world = Self {
            settings,
            network: settings.network().into(),
            namespaces: BTreeMap::new(),
            namespace_objects: Vec::new(),
            nodes: HashMap::new(),
            services: Vec::new(),
            slices: Vec::new(),
            pods: Vec::new(),
            workload_entries: Vec::new(),
            service_entries: Vec::new(),
            authorization: Vec::new(),
            peer_authentication: Vec::new(),
            request_authentication: Vec::new(),
            gateways: BTreeMap::new(),
            network_gateways: BTreeMap::new(),
            service_selectors: Selectors::default(),
            entry_selectors: Selectors::default(),
            policy_selectors: Selectors::default(),
            request_selectors: Selectors::default(),
            peer_modes: PeerModes::default(),
        };
        for (at, object) in objects.iter().enumerate() {
            match object {
                Object::Namespace(meta) => {
                    world.namespace_objects.push((at, meta));
                    world
                        .namespaces
                        .insert(Arc::clone(&meta.name), meta.labels.clone());
                }
                Object::Node(meta) => {
                    world.nodes.insert(&meta.name, node_locality(meta));
                }
                Object::Service(it) => world.services.push((at, it)),
                Object::EndpointSlice(it) => world.slices.push((at, it)),
                Object::Pod(it) => world.pods.push((at, it)),
                Object::WorkloadEntry(it) => world.workload_entries.push((at, it)),
                Object::ServiceEntry(it) => world.service_entries.push((at, it)),
                Object::AuthorizationPolicy(it) => world.authorization.push((at, it)),
                Object::PeerAuthentication(it) => world.peer_authentication.push((at, it)),
                Object::RequestAuthentication(it) => world.request_authentication.push((at, it)),
                Object::Gateway(it) => {
                    world
                        .gateways
                        .insert((&it.meta.namespace, &it.meta.name), (at, it));
                }
                Object::HttpRoute(route) => made.resources.push((at, route.clone().into())),
                Object::WorkloadGroup(_) | Object::Silent => {}
            }
        }
        for (at, gateway) in world.gateways.values() {
            let update = gateway.to_model(&world.namespaces).into();
            made.resources.push((*at, update));
        }
        if world.network.is_empty()
            && let Some(network) = world
                .namespaces
                .get(settings.root_namespace())
                .and_then(|labels| labels.get("topology.istio.io/network"))
        {
            world.network = Arc::clone(network);
        }
        world.index();
        world
    }

    fn index(&mut self) {
        // The older object wins where only one can; without times, the first by name.
        self.service_entries.sort_by_key(|(_, it)| age(&it.meta));
        self.peer_authentication
            .sort_by_key(|(_, it)| age(&it.meta));
        for (at, it) in &self.services {
            if !it.external {
                self.service_selectors
                    .insert(Some(&it.meta.namespace), &it.selector, (*at, it));
            }
        }
        for (_, it) in &self.service_entries {
            self.entry_selectors
                .insert(Some(&it.meta.namespace), &it.selector, it);
        }
        let root = self.settings.root_namespace();
        // A selector in the root namespace chooses in every namespace.
        let within = |meta: &'a Meta| (*meta.namespace != *root).then_some(&*meta.namespace);
        for (at, it) in &self.authorization {
            if let super::security::Attachment::Selector(labels) = &it.attachment {
                self.policy_selectors
                    .insert(within(&it.meta), labels, (*at, &it.meta));
            }
        }
        for (at, it) in &self.request_authentication {
            if let super::security::Attachment::Selector(labels) = &it.attachment {
                self.request_selectors
                    .insert(within(&it.meta), labels, (*at, &it.meta));
            }
        }
        self.peer_modes = PeerModes::new(&self.peer_authentication, root);
    }

    /// Policies that bind nobody: with a slip in a selector all is open that it was to close. And Services that have
    /// nobody to serve, as where a slip, or Deployments alone, is all that they could choose.
    fn name_idle(&self, objects: &[&Object], made: &mut Assembled) {
        for object in objects {
            if let Object::WorkloadGroup(group) = object {
                let (namespace, labels) = (group.name().namespace(), group.labels());
                self.policy_selectors.choosing(namespace, labels);
                self.request_selectors.choosing(namespace, labels);
                self.peer_modes.selectors.choosing(namespace, labels);
                self.service_selectors.choosing(namespace, labels);
            }
        }
        let slices = self.slices.iter();
        let with_slice: HashSet<(&str, &str)> = slices
            .map(|(_, slice)| (&*slice.meta.namespace, &*slice.service))
            .collect();
        for (at, service) in self.service_selectors.idle() {
            let name = (&*service.meta.namespace, &*service.meta.name);
            if with_slice.contains(&name) {
                continue;
            }
            let message = format!(
                "chooses no workload of these files: Service {}/{} has no endpoint",
                service.meta.namespace, service.meta.name
            );
            made.idle.push((at, "spec.selector", message));
        }
        let peers = self.peer_modes.selectors.idle();
        let peers = peers.map(|(age, _)| self.peer_authentication[age].0);
        let policies = self.policy_selectors.idle().map(|(at, _)| at);
        let requests = self.request_selectors.idle().map(|(at, _)| at);
        let mut idle: Vec<usize> = policies.chain(requests).chain(peers).collect();
        // The same ones are told each time where there are more than are told.
        idle.sort_unstable();
        for at in idle {
            let message = "chooses no workload of these files: the policy binds nobody";
            made.binds_nobody.push((at, message));
        }
    }

    /// Labels of a namespace, of which there may be no object.
    fn namespace_label(&self, namespace: &str, key: &str) -> Option<&str> {
        let labels = self.namespaces.get(namespace)?;
        labels.get(key).map(|value| &**value)
    }

    fn hostname(&self, namespace: &str, name: &str) -> Arc<str> {
        let domain = self.settings.cluster_domain();
        format!("{name}.{namespace}.svc.{domain}").into()
    }
}

/// What sorts objects by age.
fn age(meta: &Meta) -> (Arc<str>, Arc<str>, Arc<str>) {
    (
        Arc::clone(&meta.created),
        Arc::clone(&meta.namespace),
        Arc::clone(&meta.name),
    )
}

fn node_locality(meta: &Meta) -> Locality {
    let label = |key| meta.label(key).unwrap_or_default();
    Locality::new(
        label("topology.kubernetes.io/region"),
        label("topology.kubernetes.io/zone"),
        label("topology.istio.io/subzone"),
    )
}
