use super::stage::{Stage, request, until};
use crate::BoxError;

/// A typing error in a policy opens nothing and closes nothing.
pub(super) async fn broken_edit(stage: &Stage) -> Result<Vec<String>, BoxError> {
    let broken = stage
        .manifests()
        .replacen("  action: ALLOW\n", "  action: ALOW\n", 1);
    let line = 1 + broken
        .lines()
        .position(|line| line.trim() == "action: ALOW")
        .ok_or("no action in the manifests")?;
    let saved = stage.save(&broken)?;
    until("the problem is reported", saved, || async {
        !stage.cluster.problems().is_empty()
    })
    .await?;
    let problem = stage.cluster.problems().join("; ");
    if !problem.contains(&format!("bookinfo.yaml:{line}:")) || !problem.contains("action") {
        return Err(
            format!("expected the problem to name line {line} and the field: {problem}").into(),
        );
    }
    // Both policies still stand.
    let (status, _) = request(&stage.productpage(), "GET", "http://details:9080/details/0").await?;
    if status != 200 {
        return Err(format!("details answers {status} after the broken edit").into());
    }
    match stage.netshoot.connect("ratings:9080").await {
        Err(error) if error.is_denied() => {}
        other => return Err(format!("ratings is open after the broken edit: {other:?}").into()),
    }
    let saved = stage.save(stage.manifests())?;
    until("the problem is gone", saved, || async {
        stage.cluster.problems().is_empty()
    })
    .await?;
    let problem = problem.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(vec![problem])
}
