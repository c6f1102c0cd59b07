//! What the snapshot keeps of a workload and of a service.

mod service;
mod workload;

use mesh_xds::model::{GatewayAddress, Port, Rejection};

pub use service::{ServicePort, ServiceRecord};
pub(super) use workload::{Addresses, Place, Profile, Rare};
pub use workload::{MembershipRecord, WorkloadRecord};

fn check_ports(field: &str, ports: &[Port]) -> Result<(), Rejection> {
    for port in ports {
        expect(
            port.service_port() != 0 && port.target_port() != Some(0),
            field,
            "ports from 1 to 65535",
        )?;
    }
    Ok(())
}

fn check_gateway(field: &str, gateway: Option<&GatewayAddress>) -> Result<(), Rejection> {
    expect(
        gateway.is_none_or(|gateway| gateway.hbone_mtls_port() != 0),
        field,
        "a port from 1 to 65535",
    )
}

fn expect(holds: bool, field: &str, expected: &str) -> Result<(), Rejection> {
    if holds {
        Ok(())
    } else {
        Err(Rejection::new(format!("{field}: expected {expected}")))
    }
}
