use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::stage::{Stage, plaintext_page, request, until};
use crate::BoxError;

const REVIEWS: &str = "        - cluster.local/ns/default/sa/bookinfo-reviews\n";
const NETSHOOT: &str = "        - cluster.local/ns/default/sa/netshoot\n";

/// ratings admits reviews only: netshoot's tunnel is refused before a byte of its request.
pub(super) async fn refused_at_l4(stage: &Stage) -> Result<Vec<String>, BoxError> {
    match stage.netshoot.connect("ratings:9080").await {
        Ok(_) => Err("netshoot was let in to ratings".into()),
        Err(error) if error.is_denied() => Ok(vec![format!(
            "{} -> ratings: {error}",
            stage.netshoot.identity()
        )]),
        Err(error) => Err(format!("netshoot was refused for another reason: {error}").into()),
    }
}

/// details admits productpage's GET of /details/* and nothing else.
pub(super) async fn refused_at_l7(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let client = stage.productpage();
    let mut notes = Vec::new();
    for (method, path, expected) in [
        ("GET", "/details/0", 200),
        ("DELETE", "/details/0", 403),
        ("GET", "/health", 403),
    ] {
        let (status, body) =
            request(&client, method, &format!("http://details:9080{path}")).await?;
        if status != expected {
            return Err(
                format!("{method} {path}: expected {expected}, got {status}: {body}").into(),
            );
        }
        if expected == 403 && body != "RBAC: access denied" {
            return Err(format!("{method} {path}: unexpected body {body:?}").into());
        }
        notes.push(format!("{method} {path}: {status}"));
    }
    Ok(vec![notes.join("   ")])
}

/// netshoot's principal joins ratings' policy, and leaves it again.
pub(super) async fn added_and_removed(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let admitting = stage
        .manifests()
        .replacen(REVIEWS, &format!("{REVIEWS}{NETSHOOT}"), 1);
    if admitting == stage.manifests() {
        return Err("the manifests do not name reviews as a principal".into());
    }
    let saved = stage.save(&admitting)?;
    let admitted = until("netshoot admitted", saved, || async {
        stage.netshoot.connect("ratings:9080").await.is_ok()
    })
    .await?;

    let mut live = stage.netshoot.connect("ratings:9080").await?;
    live.write_all(b"GET /ratings/0 HTTP/1.1\r\nhost: ratings\r\n\r\n")
        .await?;
    let mut answer = vec![0; 1024];
    let count = timeout(Duration::from_secs(5), live.read(&mut answer)).await??;
    let head = String::from_utf8_lossy(&answer[..count]).into_owned();
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("the live connection was answered {head:?}").into());
    }

    let saved = stage.save(stage.manifests())?;
    // Cut means reset: an end of stream would look like a complete answer.
    let cut = match timeout(Duration::from_secs(20), live.read(&mut answer)).await {
        Ok(Err(_)) => saved.elapsed(),
        Ok(Ok(0)) => {
            return Err(
                "the live connection ended like a finished one instead of being cut".into(),
            );
        }
        Ok(Ok(count)) => {
            return Err(
                format!("{count} more bytes came on a connection that should be cut").into(),
            );
        }
        Err(_) => return Err("the live connection was not cut within 20 s".into()),
    };
    match stage.netshoot.connect("ratings:9080").await {
        Err(error) if error.is_denied() => {}
        other => return Err(format!("a new connection was not refused: {other:?}").into()),
    }
    Ok(vec![format!(
        "admitted {} ms after the save, live connection cut {} ms after the save (files are read every 500 ms)",
        admitted.as_millis(),
        cut.as_millis()
    )])
}

const STRICT: &str = "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: productpage
  namespace: default
spec:
  selector:
    matchLabels:
      app: productpage
  mtls:
    mode: STRICT
";

const EXCEPT_9080: &str = "  portLevelMtls:
    9080:
      mode: DISABLE
";

/// A browser has no identity.
pub(super) async fn plaintext(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let answered = || async {
        plaintext_page(Stage::page_address())
            .await
            .is_some_and(|page| page.starts_with("HTTP/1.1 200"))
    };
    if !answered().await {
        return Err("plaintext is not answered to begin with".into());
    }
    let strict = format!("{}{STRICT}", stage.manifests());
    let saved = stage.save(&strict)?;
    let refused = until("plaintext refused", saved, || async {
        plaintext_page(Stage::page_address()).await.is_none()
    })
    .await?;
    let saved = stage.save(&format!("{strict}{EXCEPT_9080}"))?;
    let again = until("plaintext answered again", saved, answered).await?;
    stage.save(stage.manifests())?;
    Ok(vec![format!(
        "refused {} ms after STRICT was saved, answered {} ms after the port's DISABLE",
        refused.as_millis(),
        again.as_millis()
    )])
}
