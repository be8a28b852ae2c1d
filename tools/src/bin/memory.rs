//! Measures the memory that a cached context takes: `memory [CONTEXTS]`. Linux only.
//!
//! Each case runs in its own process, which evaluates every context once, and reads its resident size before and after. The
//! flag service runs in this process. It is as fast as possible, and sends an `ETag` for each context.

use std::{env, error::Error, fs, process::Command, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::post,
};
use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::Value};
use tokio::{net::TcpListener, task::JoinSet};

/// The number of flags in a response.
const FLAGS: usize = 100;
/// The number of concurrent requests.
const CONCURRENT: usize = 64;
/// The number of contexts that are cached before the first measurement, which excludes memory that is allocated only once.
const BEFORE: usize = 1_000;

/// How the responses for contexts differ.
#[derive(Clone, Copy)]
enum Case {
    Equal,
    Different,
    TenSplit,
}

impl Case {
    const ALL: [Self; 3] = [Self::Equal, Self::Different, Self::TenSplit];

    fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different => "different",
            Self::TenSplit => "ten-split",
        }
    }

    fn described(self) -> &'static str {
        match self {
            Self::Equal => "all flags equal",
            Self::Different => "all flags differ",
            Self::TenSplit => "ten flags of a hundred differ",
        }
    }

    /// Returns the number of flags whose value depends on the context.
    fn split(self) -> usize {
        match self {
            Self::Equal => 0,
            Self::Different => FLAGS,
            Self::TenSplit => 10,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match &arguments[..] {
        [] => serve(10_000).await,
        [contexts] => serve(contexts.parse()?).await,
        [case, url, contexts] => {
            let case = Case::ALL.into_iter().find(|known| known.name() == case).ok_or("no such case")?;
            measure(case, url, contexts.parse()?).await
        }
        _ => Err("usage: memory [CONTEXTS]".into()),
    }
}

/// Serves the processes that measure, one after the other.
async fn serve(contexts: usize) -> Result<(), Box<dyn Error>> {
    for case in Case::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let service = Router::new().route("/ofrep/v1/evaluate/flags", post(evaluate)).with_state(case);
        let service = tokio::spawn(async move { axum::serve(listener, service).await });
        let mut measured = Command::new(env::current_exe()?);
        measured.args([case.name(), &url, &contexts.to_string()]);
        let status = tokio::task::spawn_blocking(move || measured.status()).await??;
        service.abort();
        if !status.success() {
            return Err(format!("{}: {status}", case.name()).into());
        }
    }
    Ok(())
}

/// Evaluates all flags. The value of a flag that depends on the context is one bit of a hash of the targeting key.
async fn evaluate(State(case): State<Case>, Json(body): Json<Value>) -> Response {
    let key = body["context"]["targetingKey"].as_str().unwrap_or_default();
    let number: u64 = key.trim_start_matches("user-").parse().unwrap_or_default();
    let mut seed = number;
    let flags: Vec<_> = (0..FLAGS)
        .map(|flag| {
            // SplitMix64.
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let on = flag < case.split() && (mixed >> 40) & 1 == 1;
            let variant = if on { "on" } else { "off" };
            format!(r#"{{"key":"flag-{flag}","value":{on},"reason":"SPLIT","variant":"{variant}","metadata":{{"flagType":"boolean"}}}}"#)
        })
        .collect();
    let headers = [(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, format!("\"{number:032x}\""))];
    (headers, format!(r#"{{"flags":[{}]}}"#, flags.join(","))).into_response()
}

/// Returns a user with three attributes.
fn context(number: usize) -> EvaluationContext {
    EvaluationContext::default()
        .with_targeting_key(format!("user-{number:08}"))
        .with_custom_field("country", "DE")
        .with_custom_field("plan", if number.is_multiple_of(2) { "premium" } else { "free" })
        .with_custom_field("beta", number.is_multiple_of(10))
}

async fn measure(case: Case, url: &str, contexts: usize) -> Result<(), Box<dyn Error>> {
    let provider = FlipswitchProvider::builder("key")
        .base_url(url)
        .enable_realtime(false)
        .polling_interval(Duration::from_secs(24 * 3600))
        // Twice the capacity needed: an uneven spread over the shards must not evict contexts.
        .cache_capacity(2 * (BEFORE + contexts))
        .cache_bytes(usize::MAX >> 8)
        .build()?;
    evaluate_all(&provider, 0..BEFORE).await?;
    let (before, counted) = (resident()?, provider.stats().bytes);
    evaluate_all(&provider, BEFORE..BEFORE + contexts).await?;
    let (after, stats) = (resident()?, provider.stats());
    let kept = stats.contexts as usize;
    if kept < BEFORE + contexts {
        return Err(format!("only {kept} contexts were kept").into());
    }
    let each = |bytes: u64| bytes / contexts.max(1) as u64;
    #[expect(clippy::print_stdout, reason = "the program prints its results")]
    {
        println!(
            "{:<34} {contexts:>8} contexts: {:>5} bytes each ({} by `stats`), {} MB resident",
            case.described(),
            each(after.saturating_sub(before)),
            each(stats.bytes - counted),
            after / 1_000_000,
        );
    }
    provider.shutdown().await;
    Ok(())
}

/// Evaluates the flags of contexts, some of them at the same time.
async fn evaluate_all(provider: &FlipswitchProvider, contexts: std::ops::Range<usize>) -> Result<(), Box<dyn Error>> {
    let mut evaluations = JoinSet::new();
    for number in contexts {
        if evaluations.len() == CONCURRENT {
            evaluations.join_next().await.transpose()?.transpose()?;
        }
        let provider = provider.clone();
        evaluations.spawn(async move {
            let flags = provider.flags(&context(number)).await;
            flags.error().map_or(Ok(()), |error| Err(error.clone()))
        });
    }
    while let Some(evaluated) = evaluations.join_next().await {
        evaluated??;
    }
    Ok(())
}

/// Returns the resident memory of this process in bytes.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}
