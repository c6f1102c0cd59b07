//! Loading again: only what changed is sent, and what broke stays as it was.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mesh_authz::policy::{Action, PolicyName};
use mesh_xds::file::{Loaded, Loader, Settings};
use mesh_xds::model::*;
use proptest::prelude::*;

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nstatus: {{podIP: {ip}}}\n---\n"
    )
}

fn policy(name: &str, app: &str, action: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{matchLabels: {{app: {app}}}}}, action: {action}, rules: [{{}}]}}\n---\n"
    )
}

fn load(loader: &mut Loader, text: &str) -> Loaded {
    loader.load(vec![("mesh.yaml".into(), text.into())])
}

fn names(loaded: &Loaded) -> (Vec<String>, Vec<String>) {
    let updates = loaded.batch().updates().iter();
    (
        updates.map(|update| update.name().to_string()).collect(),
        loaded
            .batch()
            .removed()
            .iter()
            .map(ToString::to_string)
            .collect(),
    )
}

#[test]
fn only_what_changed_is_sent() {
    let mut loader = Loader::new(Settings::default());
    let base = pod("a", "10.0.0.1") + &pod("b", "10.0.0.2");
    assert_eq!(load(&mut loader, &base).batch().updates().len(), 2);
    assert!(load(&mut loader, &base).batch().is_empty());
    // A policy comes with the workloads that it binds, and with no others.
    let bound = base.clone() + &policy("deny", "a", "DENY");
    let (updates, removed) = names(&load(&mut loader, &bound));
    assert_eq!(
        updates,
        ["workload Kubernetes//Pod/default/a", "policy default/deny"]
    );
    assert!(removed.is_empty());
    let (updates, removed) = names(&load(&mut loader, &base));
    assert_eq!(updates, ["workload Kubernetes//Pod/default/a"]);
    assert_eq!(removed, ["policy default/deny"]);
    let (updates, removed) = names(&load(&mut loader, &pod("b", "10.0.0.3")));
    assert_eq!(updates, ["workload Kubernetes//Pod/default/b"]);
    assert_eq!(removed, ["workload Kubernetes//Pod/default/a"]);
    let b = ResourceName::Workload("Kubernetes//Pod/default/b".into());
    let refused = Verdict::rejected(b.clone(), Rejection::new("no room"));
    assert_eq!(
        loader.refusal(&refused).unwrap().to_string(),
        "mesh.yaml:1: workload Kubernetes//Pod/default/b: no room"
    );
    assert_eq!(loader.refusal(&Verdict::accepted(b)), None);
    assert_eq!(
        loader.origin(&ResourceName::Workload("Kubernetes//Pod/default/b".into())),
        Some((std::path::Path::new("mesh.yaml"), 1))
    );
}

#[test]
fn a_broken_object_stays_as_it_was_and_its_neighbours_apply() {
    let mut loader = Loader::new(Settings::default());
    load(
        &mut loader,
        &(pod("a", "10.0.0.1") + &policy("p", "a", "DENY")),
    );
    let broken = pod("a", "10.0.0.9") + &policy("p", "a", "DENIES");
    let loaded = load(&mut loader, &broken);
    assert_eq!(loaded.problems().len(), 1);
    assert_eq!(
        names(&loaded),
        (vec!["workload Kubernetes//Pod/default/a".into()], vec![])
    );
    let name = ResourceName::Policy(PolicyName::new("default", "p"));
    let kept = loader.resources().find(|update| update.name() == name);
    assert!(
        matches!(kept, Some(Update::Policy(policy)) if *policy.policy().action() == Action::Deny)
    );
    // It stays for as long as it is broken, and the problem is said each time.
    let loaded = load(&mut loader, &broken);
    assert_eq!(loaded.problems().len(), 1);
    assert!(loaded.batch().is_empty());
    // Once it is right, it applies.
    let (updates, _) = names(&load(
        &mut loader,
        &(pod("a", "10.0.0.9") + &policy("p", "a", "ALLOW")),
    ));
    assert_eq!(updates, ["policy default/p"]);
}

#[test]
fn a_broken_file_stays_as_it_was_and_other_files_apply() {
    let mut loader = Loader::new(Settings::default());
    let files = |a: &str, b: &str| vec![("a.yaml".into(), a.into()), ("b.yaml".into(), b.into())];
    loader.load(files(&pod("a", "10.0.0.1"), &pod("b", "10.0.0.2")));
    let broken = pod("a", "10.0.0.3") + "kind: [\n";
    let loaded = loader.load(files(&broken, &pod("b", "10.0.0.4")));
    assert_eq!(
        names(&loaded),
        (vec!["workload Kubernetes//Pod/default/b".into()], vec![])
    );
    assert_eq!(loaded.problems().len(), 1);
    assert!(loaded.is_complete());
    // What moved to a file that can be read counts there.
    let loaded = loader.load(files(&broken, &pod("a", "10.0.0.5")));
    let a = "workload Kubernetes//Pod/default/a".to_owned();
    let b = "workload Kubernetes//Pod/default/b".to_owned();
    assert_eq!(names(&loaded), (vec![a], vec![b]));
    assert_eq!(loaded.problems().len(), 1);
}

#[test]
fn nothing_is_sent_before_all_files_could_be_read_once() {
    let mut loader = Loader::new(Settings::default());
    let files = |policy: String| {
        vec![
            ("mesh.yaml".into(), pod("a", "10.0.0.1").into()),
            ("policy.yaml".into(), policy.into()),
        ]
    };
    let loaded = loader.load(files("kind: [".into()));
    assert!(loaded.batch().is_empty() && !loaded.is_complete());
    let loaded = loader.load(files(policy("p", "a", "DENY")));
    assert!(loaded.is_complete());
    assert_eq!(loaded.batch().updates().len(), 2);
}

#[test]
fn a_file_that_is_gone_takes_its_objects_along() {
    let mut loader = Loader::new(Settings::default());
    loader.load(vec![
        ("a.yaml".into(), pod("a", "10.0.0.1").into()),
        ("b.yaml".into(), pod("b", "10.0.0.2").into()),
    ]);
    let loaded = loader.load(vec![("b.yaml".into(), pod("b", "10.0.0.2").into())]);
    assert_eq!(
        names(&loaded),
        (vec![], vec!["workload Kubernetes//Pod/default/a".into()])
    );
}

/// A writer that truncates first, a full disk, an editor that crashed.
#[test]
fn a_file_that_became_empty_keeps_its_objects() {
    let held = pod("a", "10.0.0.1") + &policy("p", "a", "DENY");
    for empty in [
        "",
        " \n\t",
        "# nothing yet\n",
        "---\n",
        "---\n# nothing\n---\n",
    ] {
        let mut loader = Loader::new(Settings::default());
        load(&mut loader, &held);
        for _ in 0..2 {
            let loaded = load(&mut loader, empty);
            assert!(loaded.batch().is_empty(), "{empty:?}");
            let said = loaded.problems().iter().map(ToString::to_string);
            assert_eq!(
                said.collect::<Vec<_>>(),
                [
                    "mesh.yaml:1: the file is empty and held objects before; expected them, or no file"
                ],
                "{empty:?}"
            );
        }
        assert_eq!(loader.resources().count(), 2);
        assert_eq!(loader.load(Vec::new()).batch().removed().len(), 2);
        // One that never held anything may be empty.
        assert!(load(&mut loader, empty).problems().is_empty(), "{empty:?}");
    }
}

/// A mesh of a few objects, some broken, in one or two files.
fn files() -> impl Strategy<Value = Vec<(PathBuf, Vec<u8>)>> {
    let object = prop_oneof![
        (0..4_u8, 0..3_u8).prop_map(|(name, ip)| pod(&format!("p{name}"), &format!("10.0.0.{ip}"))),
        (0..3_u8, 0..4_u8, prop_oneof!["ALLOW", "DENY", "NONSENSE"])
            .prop_map(|(name, app, action)| policy(&format!("a{name}"), &format!("p{app}"), &action)),
        (0..2_u8, prop_oneof!["STRICT", "PERMISSIVE", "x"]).prop_map(|(name, mode)| format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: n{name}}}\nspec: {{mtls: {{mode: {mode}}}}}\n---\n"
        )),
        (0..2_u8, 0..4_u8).prop_map(|(name, app)| format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{name}}}\nspec: {{selector: {{app: p{app}}}, ports: [{{port: 80}}]}}\n---\n"
        )),
        (0..2_u8).prop_map(|uid| format!(
            "workloads: [{{uid: u{uid}, name: w, namespace: ns, workloadIps: [10.1.0.{uid}]}}]\n---\n"
        )),
        Just("kind: [\n---\n".to_owned()),
    ];
    let file =
        proptest::collection::vec(object, 0..6).prop_map(|objects| objects.concat().into_bytes());
    proptest::collection::vec(file, 1..3).prop_map(|files| {
        files
            .into_iter()
            .enumerate()
            .map(|(at, content)| (PathBuf::from(format!("{at}.yaml")), content))
            .collect()
    })
}

fn apply(state: &mut BTreeMap<ResourceName, Update>, loaded: Loaded) {
    let (updates, removed, _) = loaded.into_parts().0.into_parts();
    for name in removed {
        assert!(state.remove(&name).is_some(), "{name} was not there");
    }
    for update in updates {
        let before = state.insert(update.name(), update.clone());
        assert_ne!(before, Some(update), "sent unchanged");
    }
}

fn state(loader: &Loader) -> BTreeMap<ResourceName, Update> {
    loader
        .resources()
        .map(|update| (update.name(), update.clone()))
        .collect()
}

proptest! {
    // 200 where others try 256, and as much less of `PROPTEST_CASES`.
    #![proptest_config(ProptestConfig { cases: (200 * ProptestConfig::default().cases).div_ceil(256), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_add_up_to_what_is_loaded(loads in proptest::collection::vec(files(), 1..6)) {
        let mut loader = Loader::new(Settings::default());
        let mut twin = Loader::new(Settings::default());
        let mut applied = BTreeMap::new();
        for files in loads {
            let loaded = loader.load(files.clone());
            let again = twin.load(files.clone());
            prop_assert_eq!(loaded.batch().updates(), again.batch().updates());
            prop_assert_eq!(loaded.batch().removed(), again.batch().removed());
            prop_assert_eq!(loaded.problems(), again.problems());
            let clean = loaded.problems().is_empty();
            apply(&mut applied, loaded);
            prop_assert_eq!(&applied, &state(&loader));
            prop_assert!(loader.load(files.clone()).batch().is_empty());
            if clean {
                // Without problems, what was before has left no trace.
                let mut fresh = Loader::new(Settings::default());
                fresh.load(files);
                prop_assert_eq!(&applied, &state(&fresh));
            }
        }
    }

    #[test]
    fn no_content_panics(
        lines in proptest::collection::vec(
            prop_oneof![
                "[ -]{0,6}(apiVersion|kind|metadata|spec|rules|name|workloads|policies|status|items): ?[a-z0-9{}\\[\\],:/.*&!|>\"'-]{0,20}",
                "( {2}){0,4}- ?[a-z0-9{}\\[\\],:*&]{0,12}",
                Just("---".to_owned()),
                Just("apiVersion: security.istio.io/v1".to_owned()),
                Just("kind: AuthorizationPolicy".to_owned()),
                Just("metadata: {name: a}".to_owned()),
                Just("apiVersion: v1".to_owned()),
                Just("kind: List".to_owned()),
            ],
            0..20,
        ),
        bytes in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut content = lines.join("\n").into_bytes();
        content.extend(bytes);
        let mut loader = Loader::new(Settings::default());
        let loaded = loader.load(vec![("x".into(), content)]);
        for problem in loaded.problems() {
            prop_assert!(problem.line() >= 1);
            prop_assert!(!problem.message().is_empty());
        }
    }
}
