//! The services that scenarios run against, each with a provider and a client.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use flipswitch::{
    FlipswitchProvider, FlipswitchProviderBuilder,
    open_feature::{Client, OpenFeature},
    serde_json::{self, Map, Value, json},
};
use flipswitch_local::LocalServer;
use reqwest::StatusCode;
use tempfile::NamedTempFile;

use crate::{
    server::{Peer, checked},
    support::{self, PATIENCE},
};

/// The server of the flags.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Server {
    Local,
    Flagd,
    FastFeature,
}

/// The name of the set of all flags in the scenarios, and our name for the set of the evaluator.
pub(crate) const ALL_FLAGS: &str = "flags/allFlags.json";
pub(crate) const EVALUATORS_FLAGS: &str = "evaluator/flags/testkit-flags.json";

/// The services, one for each set of flags. A single flagd has several sets, of which a client selects one.
#[derive(Debug)]
pub(crate) struct Bed(HashMap<&'static str, Service>);

/// A service with its provider.
#[derive(Debug)]
pub(crate) struct Service {
    flags: Value,
    running: Running,
    pub(crate) provider: FlipswitchProvider,
    name: String,
}

#[derive(Debug)]
enum Running {
    Local(LocalServer),
    /// Both are kept, because they stop when they are dropped.
    Peer {
        _process: Peer,
        _flags: Option<NamedTempFile>,
    },
}

/// Returns the folder of the scenarios and their flags.
pub(crate) fn scenarios() -> PathBuf {
    checked("scenarios.txt", include_str!("../peers/scenarios.txt")).join("scenarios")
}

impl Bed {
    pub(crate) async fn start(server: Server) -> Self {
        let files = scenarios();
        let sets = [
            (ALL_FLAGS, all_flags(&files)),
            (EVALUATORS_FLAGS, read(&files.join(EVALUATORS_FLAGS))),
            ("rawflags/selector-flags.json", read(&files.join("flags/selector-flags.json"))),
            (
                "rawflags/selector-flag-combined-metadata.json",
                read(&files.join("flags/selector-flag-combined-metadata.json")),
            ),
        ];
        let mut services = HashMap::new();
        for (name, flags) in sets {
            services.insert(name, Service::start(server, name, flags).await);
        }
        Self(services)
    }

    /// Returns the service of a set of flags.
    pub(crate) fn service(&self, set: &str) -> &Service {
        self.0.get(set).unwrap_or_else(|| panic!("no service has the flags {set:?}"))
    }

    pub(crate) async fn shutdown(&self) {
        for service in self.0.values() {
            service.provider.shutdown().await;
        }
    }
}

impl Service {
    async fn start(server: Server, set: &str, flags: Value) -> Self {
        let (running, provider) = match server {
            Server::Local => {
                let service = local(flags.clone()).await;
                let provider = support::builder(&service);
                (Running::Local(service), provider)
            }
            Server::Flagd => {
                let file = NamedTempFile::new().unwrap();
                fs::write(file.path(), flags.to_string()).unwrap();
                peer(Peer::flagd(file.path()), Some(file))
            }
            Server::FastFeature => peer(fast_feature(&flags).await, None),
        };
        let provider = provider.miss_wait(PATIENCE).build().unwrap();
        provider.ready(PATIENCE).await.unwrap();
        // OpenFeature has one registry for the whole process, so each provider has a name.
        let name = format!("{server:?} {set}");
        OpenFeature::singleton_mut().await.set_named_provider(&name, provider.clone()).await;
        Self { flags, running, provider, name }
    }

    /// Returns an OpenFeature client for the provider.
    pub(crate) async fn client(&self) -> Client {
        OpenFeature::singleton().await.create_named_client(&self.name)
    }

    /// Returns the values of a flag by variant.
    pub(crate) fn variants(&self, key: &str) -> &Value {
        &self.flags["flags"][key]["variants"]
    }

    /// Returns whether metadata contains the type of a flag, as with Flipswitch.
    pub(crate) fn has_types_in_metadata(&self) -> bool {
        matches!(self.running, Running::Local(_))
    }

    /// Sets the definition of a flag.
    pub(crate) fn modify(&self, key: &str, definition: Value) {
        let Running::Local(service) = &self.running else { panic!("flags of this service cannot be changed") };
        service.set_definition(key, definition).unwrap();
    }
}

fn peer(peer: Peer, flags: Option<NamedTempFile>) -> (Running, FlipswitchProviderBuilder) {
    let provider = FlipswitchProvider::ofrep(&peer.url);
    (Running::Peer { _process: peer, _flags: flags }, provider)
}

async fn local(mut flags: Value) -> LocalServer {
    // The service rejects a rule with a missing reference when it starts.
    let error = LocalServer::start(flags.clone()).await.err();
    if let Some(error) = &error {
        assert!(error.to_string().contains("nonexistent_evaluator"), "{error}");
        flags["flags"].as_object_mut().unwrap().remove("ref-to-nonexistent-evaluator-flag").unwrap();
    }
    LocalServer::start(flags).await.unwrap()
}

async fn fast_feature(flags: &Value) -> Peer {
    let peer = Peer::fast_feature();
    for (key, flag) in flags["flags"].as_object().unwrap() {
        // The evaluator fails if an operator lacks an argument, and the service then sends no bulk response.
        if ["starts-with-wrong-args-flag", "ends-with-wrong-args-flag"].contains(&key.as_str()) {
            continue;
        }
        // The service does not accept flags without a default variant.
        let expected =
            if flag["defaultVariant"].is_null() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::CREATED };
        let mut flag = flag.clone();
        resolve(&mut flag["targeting"], &flags["$evaluators"]);
        assert_eq!(peer.create(key, &flag).await, expected, "{key}");
    }
    peer
}

/// Replaces references by the shared rules.
fn resolve(rule: &mut Value, evaluators: &Value) {
    match rule {
        Value::Array(rules) => rules.iter_mut().for_each(|rule| resolve(rule, evaluators)),
        Value::Object(fields) => match fields.get("$ref").and_then(|name| evaluators.get(name.as_str()?)) {
            Some(evaluator) => *rule = evaluator.clone(),
            None => fields.values_mut().for_each(|rule| resolve(rule, evaluators)),
        },
        _ => {}
    }
}

/// Returns all flags in one document, merged as in the set-up of the scenarios, without the sets for the selector.
fn all_flags(files: &Path) -> Value {
    let mut merged = json!({"flags": {}, "$evaluators": {}});
    for file in fs::read_dir(files.join("flags")).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_string_lossy().starts_with("selector-") {
            continue;
        }
        let document = read(&file.path());
        for part in ["flags", "$evaluators"] {
            let fields = document.get(part).and_then(Value::as_object);
            merged[part].as_object_mut().unwrap().extend(fields.cloned().unwrap_or_else(Map::new));
        }
    }
    merged
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
