//! `x-request-id`: one per request, passed on by whoever handles it.

use http::{HeaderMap, HeaderName, HeaderValue};

const NAME: HeaderName = HeaderName::from_static("x-request-id");

/// Gives a request an id unless it has one: Envoy's rule at the first hop
/// ([x-request-id](https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-request-id)).
pub(crate) fn ensure(headers: &mut HeaderMap, random: impl FnOnce() -> [u64; 2]) {
    if !headers.contains_key(NAME)
        && let Ok(id) = HeaderValue::try_from(uuid(random()))
    {
        headers.insert(NAME, id);
    }
}

/// A UUID of version 4 (RFC 9562 section 5.4). Envoy reads a trace decision in the digit that says so;
/// `4` is none.
fn uuid([high, low]: [u64; 2]) -> String {
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | (0b10 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_4() {
        assert_eq!(uuid([0; 2]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid([u64::MAX; 2]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(
            uuid([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]),
            "01234567-89ab-4def-bedc-ba9876543210"
        );
    }
}
