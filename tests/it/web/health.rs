//! Health endpoints for probes.

use flipswitch::{
    FlipswitchProvider,
    serde_json::{Value, json},
};

use crate::support::{
    self,
    apps::{Framework, service},
};

#[tokio::test]
async fn probes_report_whether_flags_work() {
    for framework in Framework::ALL {
        let service = service().await;
        let (well, away) = (support::provider(&service), support::provider_of_nothing());
        support::in_time(well.ready(support::PATIENCE)).await.unwrap();
        let memory = FlipswitchProvider::in_memory(json!({}));
        // provider; without a query, ?live, ?ready
        for (name, provider, statuses) in
            [("well", well, [200, 200, 200]), ("away", away, [200, 200, 503]), ("in memory", memory, [200, 200, 200])]
        {
            let app = framework.serve(provider.clone()).await;
            let check = async |statuses: [u16; 3]| {
                for (query, expected) in ["", "?live", "?ready"].into_iter().zip(statuses) {
                    let response = app.send(&format!("/health{query}"), &[]).await;
                    assert_eq!(response.status().as_u16(), expected, "{framework:?} {name} {query}");
                    assert_eq!(response.headers()["content-type"], "application/json");
                    assert_eq!(response.headers()["cache-control"], "no-store");
                    let body: Value = response.json().await.unwrap();
                    assert_eq!(body["state"], json!(provider.health().state), "{framework:?} {name}");
                    assert_eq!(body["ready"], provider.health().is_ready(), "{framework:?} {name}");
                }
            };
            check(statuses).await;
            // Some load balancers send HEAD requests.
            for (query, expected) in ["", "?ready"].into_iter().zip([statuses[0], statuses[2]]) {
                let response =
                    support::in_time(app.client.head(format!("{}/health{query}", app.url)).send()).await.unwrap();
                assert_eq!(response.status().as_u16(), expected, "{framework:?} {name} HEAD {query}");
                assert_eq!(support::in_time(response.bytes()).await.unwrap(), "", "{framework:?}");
            }
            for query in ["?ready=1", "?x&ready", "?live&ready=true"] {
                let status = app.send(&format!("/health{query}"), &[]).await.status().as_u16();
                assert_eq!(status, statuses[2], "{framework:?} {name} {query}");
            }
            provider.shutdown().await;
            check([503; 3]).await;
        }
    }
}
