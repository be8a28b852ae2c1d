//! Libraries that spawn work for a request, such as a DataLoader, which collects keys and loads them in a task.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use actix_web::{App, test::TestRequest, web};
use async_graphql::dataloader::{DataLoader, Loader};
use axum::{Router, body::Body, extract::Request, routing::get};
use flipswitch::{
    Context, InRequest,
    open_feature::{Client, OpenFeature},
    serde_json::json,
    testing::TestFlags,
};
use tower::ServiceExt;

use crate::support::{
    Log,
    apps::{Framework, clients::whoami},
};

/// Loads, for each key, the user that an OpenFeature client evaluates for.
struct Names(Arc<Client>);

impl Loader<u8> for Names {
    type Value = String;
    type Error = Infallible;

    async fn load(&self, keys: &[u8]) -> Result<HashMap<u8, String>, Infallible> {
        let name = whoami(&self.0).await;
        Ok(keys.iter().map(|key| (*key, name.clone())).collect())
    }
}

#[actix_web::test]
async fn a_data_loader_evaluates_for_its_request_if_its_tasks_have_the_scope() {
    for framework in Framework::ALL {
        for (is_carried, expected) in [(true, "alice"), (false, "nobody")] {
            let log = Log::of_this_thread();
            let flags = TestFlags::new(json!({"whoami": "nobody"}));
            flags.set_when("whoami", "alice", |context| context.targeting_key.as_deref() == Some("alice"));
            let mut api = OpenFeature::default();
            api.set_provider(flags.provider()).await;
            let names = move |client: Arc<Client>| {
                if is_carried {
                    // The loader spawns its task when a key is loaded, which happens in the request.
                    DataLoader::new(Names(client), |task| drop(tokio::spawn(task.with_current_scope())))
                } else {
                    DataLoader::new(Names(client), tokio::spawn)
                }
            };
            let client = Arc::new(api.create_client());
            let handler = move || {
                let loader = names(Arc::clone(&client));
                async move { loader.load_one(1).await.unwrap().unwrap() }
            };
            let found = match framework {
                Framework::Axum => {
                    let layer = flipswitch_axum::FlipswitchLayer::new(flags.provider());
                    let app =
                        Router::new().route("/", get(handler)).layer(layer.with_context(|_| Context::user("alice")));
                    let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
                    axum::body::to_bytes(response.into_body(), 1_000).await.unwrap().to_vec()
                }
                Framework::Actix => {
                    let middleware = flipswitch_actix::FlipswitchMiddleware::new(flags.provider());
                    let app = App::new()
                        .route("/", web::get().to(handler))
                        .wrap(middleware.with_context(|_| Context::user("alice")));
                    let app = actix_web::test::init_service(app).await;
                    let response = actix_web::test::call_service(&app, TestRequest::get().to_request()).await;
                    actix_web::test::read_body(response).await.to_vec()
                }
            };
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{framework:?}");
            let told = log.lines().iter().filter(|line| line.contains("libraries that spawn")).count();
            assert_eq!(told, usize::from(!is_carried), "{framework:?} {:?}", log.lines());
        }
    }
}
