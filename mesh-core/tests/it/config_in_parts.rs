//! What a source adds takes effect with its next batch, and not before.

use mesh_core::config::{ConfigLink, ConfigSource};
use mesh_core::identity::DevCa;
use mesh_core::xds::model::{
    Batch, NetworkAddress, Port, ResourceName, Service, ServiceName, Update, Workload,
};
use mesh_core::{Error, Mesh, Node};
use tokio::sync::{mpsc, oneshot};

enum Step {
    Add(Batch),
    Apply(Batch),
    Discard,
}

/// What a step returned: who was refused.
type Refused = Vec<ResourceName>;

struct Steps(mpsc::UnboundedReceiver<(Step, oneshot::Sender<Refused>)>);

impl ConfigSource for Steps {
    async fn run(mut self, link: ConfigLink) -> Result<(), Error> {
        while let Some((step, answer)) = self.0.recv().await {
            let verdicts = match step {
                Step::Add(batch) => link.add(&batch)?,
                Step::Apply(batch) => link.apply(batch)?,
                Step::Discard => {
                    link.discard()?;
                    Vec::new()
                }
            };
            let refused = verdicts.iter().filter(|one| one.result().is_err());
            let _ = answer.send(refused.map(|one| one.resource().clone()).collect());
        }
        Ok(())
    }
}

struct Parts {
    steps: mpsc::UnboundedSender<(Step, oneshot::Sender<Refused>)>,
    mesh: Mesh,
}

impl Parts {
    async fn new() -> Self {
        let (steps, taken) = mpsc::unbounded_channel();
        let node = Node::builder()
            .config(Steps(taken))
            .identity(DevCa::ephemeral("cluster.local"))
            .build_node()
            .unwrap();
        let mesh = node.workload("default", "client", "client").unwrap();
        let parts = Self { steps, mesh };
        let own = Workload::new("client", "default", "client")
            .with_addresses(vec![[127, 0, 0, 1].into()]);
        parts.step(Step::Apply(batch(vec![own.into()]))).await;
        parts.mesh.ready().await.unwrap();
        parts
    }

    async fn step(&self, step: Step) -> Refused {
        let (answer, answered) = oneshot::channel();
        assert!(self.steps.send((step, answer)).is_ok(), "the node has gone");
        answered.await.unwrap()
    }

    async fn knows(&self, name: &str) -> bool {
        let found = self.mesh.resolve(name).await;
        found.is_ok_and(|addresses| !addresses.is_empty())
    }
}

fn batch(updates: Vec<Update>) -> Batch {
    Batch::new(updates, Vec::new())
}

fn service(name: &str, last: u8) -> Update {
    let host = format!("{name}.default.svc.cluster.local");
    Service::new(ServiceName::new("default", host))
        .with_addresses(vec![NetworkAddress::new("", [10, 0, 0, last].into())])
        .with_ports(vec![Port::new(80).with_target_port(8080)])
        .into()
}

/// One that no snapshot takes: it has no uid.
fn wrong() -> Update {
    Workload::new("", "default", "wrong").into()
}

#[tokio::test]
async fn what_is_added_takes_effect_with_the_next_batch() {
    let parts = Parts::new().await;
    let refused = parts
        .step(Step::Add(batch(vec![service("a", 1), wrong()])))
        .await;
    assert_eq!(refused, [ResourceName::Workload("".into())]);
    parts.step(Step::Add(batch(vec![service("b", 2)]))).await;
    assert!(!parts.knows("a").await && !parts.knows("b").await);
    parts.step(Step::Apply(batch(vec![service("c", 3)]))).await;
    for name in ["a", "b", "c"] {
        assert!(parts.knows(name).await, "{name}");
    }
}

#[tokio::test]
async fn what_is_discarded_does_not() {
    let parts = Parts::new().await;
    parts.step(Step::Add(batch(vec![service("a", 1)]))).await;
    parts.step(Step::Discard).await;
    parts.step(Step::Apply(batch(vec![service("b", 2)]))).await;
    assert!(parts.knows("b").await);
    assert!(!parts.knows("a").await);
}
