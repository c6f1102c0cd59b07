//! Which fields a kind has, at the places that are read: one that it does not have is a slip of somebody's.
//!
//! Objects carry much that says nothing to a mesh, so what is not read has to be known by name all the
//! same. The names are those of Kubernetes 1.34 (<https://kubernetes.io/docs/reference/kubernetes-api/>),
//! of Istio's CRDs and of the Gateway API 1.4; a newer version may have more, so that an unknown one is
//! passed over with a warning, except where that could widen access.

use super::Kind;
use crate::file::cursor::Cursor;
use crate::file::problem::Invalid;

/// What may stand at a place.
enum Shape {
    /// A mapping with fields that are looked into, and with others.
    Map {
        read: &'static [(&'static str, Shape)],
        rest: &'static [&'static str],
    },
    List(&'static Shape),
}

use Shape::{List, Map};

/// A mapping that is not looked into further.
const fn fields(rest: &'static [&'static str]) -> Shape {
    Map { read: &[], rest }
}

const METADATA: Shape = Map {
    read: &[("ownerReferences", List(&OWNER))],
    rest: &[
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
        "uid",
    ],
};

const OWNER: Shape = fields(&[
    "apiVersion",
    "blockOwnerDeletion",
    "controller",
    "kind",
    "name",
    "uid",
]);

const CONDITION: Shape = fields(&[
    "lastProbeTime",
    "lastTransitionTime",
    "lastUpdateTime",
    "message",
    "observedGeneration",
    "reason",
    "status",
    "type",
]);

/// An object of which nothing but `metadata` is read, or the rest is read strictly.
const PLAIN: Shape = Map {
    read: &[("metadata", METADATA)],
    rest: &["apiVersion", "kind", "spec", "status"],
};

const SERVICE_ACCOUNT: Shape = Map {
    read: &[("metadata", METADATA)],
    rest: &[
        "apiVersion",
        "automountServiceAccountToken",
        "imagePullSecrets",
        "kind",
        "secrets",
    ],
};

const SERVICE: Shape = Map {
    read: &[
        ("metadata", METADATA),
        (
            "spec",
            Map {
                read: &[(
                    "ports",
                    List(&fields(&[
                        "appProtocol",
                        "name",
                        "nodePort",
                        "port",
                        "protocol",
                        "targetPort",
                    ])),
                )],
                rest: &[
                    "allocateLoadBalancerNodePorts",
                    "clusterIP",
                    "clusterIPs",
                    "externalIPs",
                    "externalName",
                    "externalTrafficPolicy",
                    "healthCheckNodePort",
                    "internalTrafficPolicy",
                    "ipFamilies",
                    "ipFamilyPolicy",
                    "loadBalancerClass",
                    "loadBalancerIP",
                    "loadBalancerSourceRanges",
                    "publishNotReadyAddresses",
                    "selector",
                    "sessionAffinity",
                    "sessionAffinityConfig",
                    "topologyKeys",
                    "trafficDistribution",
                    "type",
                ],
            },
        ),
    ],
    rest: &["apiVersion", "kind", "status"],
};

const POD: Shape = Map {
    read: &[
        ("metadata", METADATA),
        ("spec", POD_SPEC),
        (
            "status",
            Map {
                read: &[
                    ("conditions", List(&CONDITION)),
                    ("podIPs", List(&fields(&["ip"]))),
                ],
                rest: &[
                    "allocatedResources",
                    "containerStatuses",
                    "ephemeralContainerStatuses",
                    "extendedResourceClaimStatus",
                    "hostIP",
                    "hostIPs",
                    "initContainerStatuses",
                    "message",
                    "nominatedNodeName",
                    "observedGeneration",
                    "phase",
                    "podIP",
                    "qosClass",
                    "reason",
                    "resize",
                    "resourceClaimStatuses",
                    "resources",
                    "startTime",
                ],
            },
        ),
    ],
    rest: &["apiVersion", "kind"],
};

const POD_SPEC: Shape = Map {
    read: &[("containers", List(&CONTAINER))],
    rest: &[
        "activeDeadlineSeconds",
        "affinity",
        "automountServiceAccountToken",
        "dnsConfig",
        "dnsPolicy",
        "enableServiceLinks",
        "ephemeralContainers",
        "hostAliases",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostUsers",
        "hostname",
        "hostnameOverride",
        "imagePullSecrets",
        "initContainers",
        "nodeName",
        "nodeSelector",
        "os",
        "overhead",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "readinessGates",
        "resourceClaims",
        "resources",
        "restartPolicy",
        "runtimeClassName",
        "schedulerName",
        "schedulingGates",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "terminationGracePeriodSeconds",
        "tolerations",
        "topologySpreadConstraints",
        "volumes",
        "workloadRef",
    ],
};

const CONTAINER: Shape = Map {
    read: &[(
        "ports",
        List(&fields(&[
            "containerPort",
            "hostIP",
            "hostPort",
            "name",
            "protocol",
        ])),
    )],
    rest: &[
        "args",
        "command",
        "env",
        "envFrom",
        "image",
        "imagePullPolicy",
        "lifecycle",
        "livenessProbe",
        "name",
        "readinessProbe",
        "resizePolicy",
        "resources",
        "restartPolicy",
        "restartPolicyRules",
        "securityContext",
        "startupProbe",
        "stdin",
        "stdinOnce",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "tty",
        "volumeDevices",
        "volumeMounts",
        "workingDir",
    ],
};

const ENDPOINT_SLICE: Shape = Map {
    read: &[
        ("metadata", METADATA),
        (
            "endpoints",
            List(&Map {
                read: &[
                    ("conditions", fields(&["ready", "serving", "terminating"])),
                    (
                        "targetRef",
                        fields(&[
                            "apiVersion",
                            "fieldPath",
                            "kind",
                            "name",
                            "namespace",
                            "resourceVersion",
                            "uid",
                        ]),
                    ),
                ],
                rest: &[
                    "addresses",
                    "deprecatedTopology",
                    "hints",
                    "hostname",
                    "nodeName",
                    "zone",
                ],
            }),
        ),
        (
            "ports",
            List(&fields(&["appProtocol", "name", "port", "protocol"])),
        ),
    ],
    rest: &["addressType", "apiVersion", "kind"],
};

/// WorkloadEntry and ServiceEntry: `spec` is read strictly.
const ENTRY: Shape = Map {
    read: &[
        ("metadata", METADATA),
        (
            "status",
            Map {
                read: &[
                    ("addresses", List(&fields(&["host", "value"]))),
                    ("conditions", List(&CONDITION)),
                ],
                rest: &["observedGeneration", "validationMessages"],
            },
        ),
    ],
    rest: &["apiVersion", "kind", "spec"],
};

const GATEWAY_ADDRESS: Shape = fields(&["type", "value"]);

const GATEWAY: Shape = Map {
    read: &[
        ("metadata", METADATA),
        (
            "spec",
            Map {
                read: &[
                    ("addresses", List(&GATEWAY_ADDRESS)),
                    (
                        "listeners",
                        List(&Map {
                            read: &[(
                                "allowedRoutes",
                                Map {
                                    read: &[("namespaces", fields(&["from", "selector"]))],
                                    rest: &["kinds"],
                                },
                            )],
                            rest: &["hostname", "name", "port", "protocol", "tls"],
                        }),
                    ),
                ],
                rest: &[
                    "allowedListeners",
                    "backendTLS",
                    "defaultScope",
                    "gatewayClassName",
                    "infrastructure",
                    "tls",
                ],
            },
        ),
        (
            "status",
            Map {
                read: &[("addresses", List(&GATEWAY_ADDRESS))],
                rest: &["attachedListenerSets", "conditions", "listeners"],
            },
        ),
    ],
    rest: &["apiVersion", "kind"],
};

impl Kind {
    fn shape(self) -> &'static Shape {
        match self {
            Self::Service => &SERVICE,
            Self::Pod => &POD,
            Self::EndpointSlice => &ENDPOINT_SLICE,
            Self::ServiceAccount => &SERVICE_ACCOUNT,
            Self::WorkloadEntry | Self::ServiceEntry => &ENTRY,
            Self::Gateway => &GATEWAY,
            Self::Namespace
            | Self::Node
            | Self::WorkloadGroup
            | Self::HttpRoute
            | Self::AuthorizationPolicy
            | Self::PeerAuthentication
            | Self::RequestAuthentication => &PLAIN,
        }
    }
}

/// Hands the fields of an object that its kind does not have to `found`, in the order of the file.
pub(super) fn unknown(object: &Cursor<'_>, kind: Kind, found: &mut impl FnMut(Invalid)) {
    look(object, kind.shape(), found);
}

/// What is not of the shape's type is for whoever reads it to refuse.
fn look(at: &Cursor<'_>, shape: &Shape, found: &mut impl FnMut(Invalid)) {
    match shape {
        Map { read, rest } => {
            for (key, value) in at.entries().unwrap_or_default() {
                let inner = read.iter().find(|(name, _)| **name == **key);
                if let Some((_, shape)) = inner {
                    look(&value, shape, found);
                } else if !rest.contains(&&**key) {
                    let known = read
                        .iter()
                        .map(|(name, _)| *name)
                        .chain(rest.iter().copied());
                    found(value.invalid(message(key, known)));
                }
            }
        }
        List(of) => {
            for item in at.items().unwrap_or_default() {
                look(&item, of, found);
            }
        }
    }
}

/// How many known fields a message lists; a Pod's `spec` has forty.
const LISTED: usize = 8;

fn message(found: &str, known: impl Iterator<Item = &'static str>) -> String {
    let mut known: Vec<_> = known.collect();
    known.sort_unstable();
    if let Some(meant) = known.iter().find(|known| alike(found, known)) {
        return format!("unknown field; expected {meant}?");
    }
    if known.len() <= LISTED {
        return format!("unknown field; known are {}", known.join(", "));
    }
    "unknown field; expected none of this name".to_owned()
}

/// Whether one name could be a slip of the other: but for case two letters differ at most.
pub(super) fn alike(found: &str, known: &str) -> bool {
    if found.eq_ignore_ascii_case(known) {
        return true;
    }
    let (short, long) = (found.len().min(known.len()), found.len().max(known.len()));
    if short < 4 || long - short > 2 {
        return false;
    }
    // Levenshtein's distance, a row at a time.
    let mut row: Vec<usize> = (0..=known.len()).collect();
    for (i, a) in found.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in known.bytes().enumerate() {
            let replace = diagonal + usize::from(!a.eq_ignore_ascii_case(&b));
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[known.len()] <= 2
}
