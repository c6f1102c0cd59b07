//! The validated model of an Istio ambient mesh and the sources that produce it.
