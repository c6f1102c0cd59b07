//! The service mesh as a library: wrap a hyper, axum or tonic service and be in the mesh.
