//! The program's two ways to stay up.

use crate::program::Stage;

const ID: &str = "spiffe://cluster.local/ns/default/sa/";

#[tokio::test]
async fn an_edit_takes_effect_and_is_announced() {
    let stage = Stage::new(1);
    let mut program = stage.start_all();
    let page = format!("http://{}/productpage", stage.page());
    program.says(&["Bookinfo is up:", &page]).await;
    program.says(&["What it knows:", &stage.admin()]).await;
    stage
        .page_that("the page is whole", |page| page.contains("PublisherA"))
        .await;
    let (from, to) = (
        format!("{ID}bookinfo-productpage"),
        format!("{ID}bookinfo-details"),
    );
    program
        .says(&[&from, "->", &to, "GET /details/0", "200"])
        .await;

    let shipped = stage.manifests();
    stage.save(&shipped.replace("paths: [\"/details/*\"]", "paths: [\"/nothing\"]"));
    stage
        .page_that("details refuses", |page| {
            page.contains("RBAC: access denied")
        })
        .await;
    program
        .says(&["configuration files applied", "changed=1 problems=0"])
        .await;

    // A broken edit is announced with its place, and changes nothing.
    stage.save(&shipped.replace("action: ALLOW", "action: PERHAPS"));
    program.says(&["action", "PERHAPS", "bookinfo.yaml:"]).await;
    assert!(stage.load().await.contains("RBAC: access denied"));

    stage.save(&shipped);
    stage
        .page_that("details answers again", |page| page.contains("PublisherA"))
        .await;
    assert!(program.interrupt().await.success(), "{}", program.said());
    assert!(program.said().contains("draining"), "{}", program.said());
}

#[tokio::test]
async fn six_processes_share_a_ca_and_assemble_the_page() {
    let stage = Stage::new(2);
    let mut programs = Vec::new();
    for service in [
        "productpage-v1",
        "details-v1",
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
        "ratings-v1",
    ] {
        programs.push((service, stage.start(&["serve", service])));
    }
    for (service, program) in &mut programs {
        program.says(&[service, "is up"]).await;
    }
    let page = format!("http://{}/productpage", stage.page());
    programs[0].1.says(&[&page]).await;
    for version in ["reviews-v1", "reviews-v2", "reviews-v3"] {
        let page = stage
            .page_that(version, |page| page.contains(&format!("<b>{version}</b>")))
            .await;
        assert!(page.contains("PublisherA"), "{page}");
        assert_eq!(page.contains("★★★★★"), version != "reviews-v1", "{page}");
    }
    let from = format!("{ID}bookinfo-reviews");
    programs[5].1.says(&[&from, "GET /ratings/0", "200"]).await;
    for (service, program) in &mut programs {
        assert!(
            program.interrupt().await.success(),
            "{service}: {}",
            program.said()
        );
    }
}

#[tokio::test]
async fn a_service_that_does_not_exist_is_an_error_that_names_those_that_do() {
    let stage = Stage::new(3);
    let mut program = stage.start(&["serve", "reviews-v4"]);
    let status = program.ended().await;
    assert_eq!(status.code(), Some(1));
    let said = program.said();
    assert!(
        said.contains("reviews-v4") && said.contains("reviews-v3"),
        "{said}"
    );
}
