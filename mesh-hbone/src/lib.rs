//! HBONE tunnels: SPIFFE mutual TLS and HTTP/2 CONNECT.
