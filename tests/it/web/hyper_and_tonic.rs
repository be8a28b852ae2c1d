//! The layer and the gate around services without axum: hyper and tonic.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut};
use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
use flipswitch_axum::{FlagGate, FlagsExt, FlipswitchLayer, RequestScope};
use flipswitch_local::LocalServer;
use futures_util::{Stream, stream};
use http::{HeaderMap, Request, Response, StatusCode, request::Parts, uri::PathAndQuery};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::net::TcpListener;
use tonic::{
    Code, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    server::NamedService,
    service::LayerExt,
    transport::{Channel, Server, server::TcpIncoming},
};
use tower::{Layer, Service, service_fn};

use crate::support::{eventually, in_time, provider, user};

/// Starts a service whose flag `beta` is on for Alice, and whose flag `greeting` is the same for all users.
async fn service() -> LocalServer {
    let flags = json!({"flags": {
        "beta": {
            "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "targeting": {"if": [{"===": [{"var": "targetingKey"}, "alice"]}, "on", "off"]},
        },
        "greeting": {"state": "ENABLED", "variants": {"old": "Hello"}, "defaultVariant": "old"},
    }});
    LocalServer::start(flags).await.unwrap()
}

/// Returns the user from a header.
fn layer(provider: &FlipswitchProvider) -> FlipswitchLayer {
    fn context(headers: &HeaderMap) -> Option<EvaluationContext> {
        headers.get("x-user").map(|id| user(id.to_str().unwrap()))
    }
    FlipswitchLayer::new(provider.clone()).with_context(|parts| context(&parts.headers))
}

/// Returns the greeting for the flags of a request.
async fn greeting(scope: Option<RequestScope>) -> String {
    let scope = scope.expect("the layer's scope");
    let name = scope.context().targeting_key.as_deref().unwrap_or("nobody");
    format!("{}, {name}", scope.flags().await.string("greeting", "default"))
}

#[tokio::test]
async fn the_scope_is_found_in_a_request_its_parts_and_its_extensions() {
    let provider = FlipswitchProvider::in_memory(json!({"greeting": "Hello"}));
    async fn handle(request: Request<()>) -> Result<Response<Vec<String>>, Infallible> {
        let mut found = vec![greeting(request.flag_scope()).await];
        let (parts, ()): (Parts, ()) = request.into_parts();
        found.push(greeting(parts.flag_scope()).await);
        found.push(greeting(parts.extensions.flag_scope()).await);
        Ok(Response::new(found))
    }
    let request = Request::builder().header("x-user", "alice").body(()).unwrap();
    let found = layer(&provider).layer(service_fn(handle)).call(request).await.unwrap();
    assert_eq!(found.into_body(), ["Hello, alice"; 3]);

    let (parts, ()) = Request::new(()).into_parts();
    assert!(
        parts.flag_scope().is_none()
            && parts.extensions.flag_scope().is_none()
            && Request::new(()).flag_scope().is_none()
    );
}

/// Starts an HTTP server with hyper alone. `/beta` is behind a gate.
async fn serve_with_hyper(provider: &FlipswitchProvider) -> SocketAddr {
    async fn handle(request: Request<hyper::body::Incoming>) -> Result<Response<String>, Infallible> {
        Ok(Response::new(greeting(request.flag_scope()).await))
    }
    let handler = service_fn(handle);
    let gated = FlagGate::enabled("beta").fallback((StatusCode::FORBIDDEN, "not yet")).layer(handler);
    let routes = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (mut handler, mut gated) = (handler, gated.clone());
        async move {
            match request.uri().path() {
                "/beta" => gated.call(request).await,
                _ => handler.call(request).await.map(|response| response.map(axum::body::Body::new)),
            }
        }
    });
    let app = TowerToHyperService::new(layer(provider).layer(routes));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let connection = TokioIo::new(connection);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(connection, app.clone()));
        }
    });
    address
}

#[tokio::test]
async fn flags_and_gates_work_under_hyper() {
    let service = service().await;
    let provider = provider(&service);
    let address = serve_with_hyper(&provider).await;
    let client = reqwest::Client::new();
    let get = async |path: &str, user: &str| {
        let request = client.get(format!("http://{address}{path}")).header("x-user", user);
        let response = in_time(request.send()).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    for (path, user, status, body) in [
        ("/", "alice", 200, "Hello, alice"),
        ("/", "bob", 200, "Hello, bob"),
        ("/beta", "alice", 200, "Hello, alice"),
        ("/beta", "bob", 403, "not yet"),
        // The flags of this user are not cached, so the gate waits for the service.
        ("/beta", "carol", 403, "not yet"),
    ] {
        assert_eq!(get(path, user).await, (status, body.to_owned()), "{path} {user}");
    }
    service.set_flag("beta", true);
    service.set_flag("greeting", "Welcome");
    eventually(async || get("/beta", "bob").await == (200, "Welcome, bob".to_owned())).await;
    provider.shutdown().await;
}

/// A codec for text messages, which replaces generated code.
#[derive(Default)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        String::from_utf8(bytes.into()).map(Some).map_err(|_| Status::internal("no text"))
    }
}

/// A gRPC service with two methods and one of two names, as a code generator would write it.
#[derive(Clone)]
struct Shop<const BETA: bool>;

impl<const BETA: bool> NamedService for Shop<BETA> {
    const NAME: &'static str = if BETA { "test.BetaShop" } else { "test.Shop" };
}

impl<const BETA: bool> Service<Request<tonic::body::Body>> for Shop<BETA> {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Text);
            Ok(match request.uri().path().rsplit('/').next() {
                Some("Greet") => grpc.unary(service_fn(greet), request).await,
                Some("Count") => grpc.server_streaming(service_fn(count), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

async fn greet(request: tonic::Request<String>) -> Result<tonic::Response<String>, Status> {
    let greeting = greeting(request.extensions().flag_scope()).await;
    Ok(tonic::Response::new(format!("{}: {greeting}", request.get_ref())))
}

/// Sends flags and numbers, and then a status with metadata as trailers.
async fn count(
    request: tonic::Request<String>,
) -> Result<tonic::Response<impl Stream<Item = Result<String, Status>>>, Status> {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-behind", "the end".parse().unwrap());
    let end = match request.get_ref().as_str() {
        "well" => None,
        _ => Some(Err(Status::with_metadata(Code::Aborted, "on purpose", metadata))),
    };
    let mut messages = vec![Ok(greeting(request.extensions().flag_scope()).await)];
    messages.extend((1..=100).map(|number| Ok(number.to_string())));
    Ok(tonic::Response::new(stream::iter(messages.into_iter().chain(end))))
}

/// Starts a gRPC server with the layer around everything, a gate in front of all services, and another gate in front of one.
async fn serve_with_tonic(provider: &FlipswitchProvider) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .layer(layer(provider))
        .layer(FlagGate::disabled("closed"))
        .add_service(Shop::<false>)
        .add_service(FlagGate::enabled("beta").named_layer(Shop::<true>))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

/// A call of a method by a user.
struct Call {
    client: tonic::client::Grpc<Channel>,
    method: PathAndQuery,
    request: tonic::Request<String>,
}

impl Call {
    async fn new(channel: &Channel, method: &'static str, user: &'static str, text: &str) -> Self {
        let mut client = tonic::client::Grpc::new(channel.clone());
        in_time(client.ready()).await.unwrap();
        let mut request = tonic::Request::new(text.to_owned());
        request.metadata_mut().insert("x-user", user.parse().unwrap());
        Self { client, method: PathAndQuery::from_static(method), request }
    }

    async fn unary(mut self) -> Result<String, Code> {
        let answer = in_time(self.client.unary(self.request, self.method, Text)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.code())
    }

    async fn streaming(mut self) -> Streaming<String> {
        in_time(self.client.server_streaming(self.request, self.method, Text)).await.unwrap().into_inner()
    }
}

#[tokio::test]
async fn flags_work_under_grpc_and_a_closed_gate_is_unimplemented() {
    let service = service().await;
    let provider = provider(&service);
    let channel = serve_with_tonic(&provider).await;
    for (method, user, expected) in [
        ("/test.Shop/Greet", "alice", Ok("hi: Hello, alice")),
        ("/test.Shop/Greet", "bob", Ok("hi: Hello, bob")),
        ("/test.BetaShop/Greet", "alice", Ok("hi: Hello, alice")),
        ("/test.BetaShop/Greet", "bob", Err(Code::Unimplemented)),
        // The flags of this user are not cached, so the gate waits for the service.
        ("/test.BetaShop/Greet", "carol", Err(Code::Unimplemented)),
        ("/test.Shop/Missing", "alice", Err(Code::Unimplemented)),
    ] {
        let answer = Call::new(&channel, method, user, "hi").await.unary().await;
        assert_eq!(answer, expected.map(str::to_owned), "{method} {user}");
    }
    service.set_flag("beta", true);
    service.set_flag("greeting", "Welcome");
    let expected = Ok("hi: Welcome, bob".to_owned());
    eventually(async || Call::new(&channel, "/test.BetaShop/Greet", "bob", "hi").await.unary().await == expected).await;
    service.set_flag("closed", true);
    let expected = Err(Code::Unimplemented);
    eventually(async || Call::new(&channel, "/test.Shop/Greet", "bob", "hi").await.unary().await == expected).await;
    provider.shutdown().await;
}

#[tokio::test]
async fn grpc_streams_pass_with_their_trailers() {
    let service = service().await;
    let provider = provider(&service);
    let channel = serve_with_tonic(&provider).await;
    for method in ["/test.Shop/Count", "/test.BetaShop/Count"] {
        for end in ["well", "badly"] {
            let mut stream = Call::new(&channel, method, "alice", end).await.streaming().await;
            assert_eq!(in_time(stream.message()).await.unwrap().unwrap(), "Hello, alice");
            for number in 1..=100 {
                assert_eq!(in_time(stream.message()).await.unwrap().unwrap(), number.to_string(), "{method}");
            }
            match in_time(stream.message()).await {
                Ok(message) => assert_eq!((message, end), (None, "well"), "{method}"),
                Err(status) => {
                    assert_eq!((status.code(), status.message(), end), (Code::Aborted, "on purpose", "badly"));
                    assert_eq!(status.metadata().get("x-behind").unwrap(), "the end", "{method}");
                }
            }
        }
    }
    provider.shutdown().await;
}
