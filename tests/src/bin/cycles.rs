//! Starts a provider and shuts it down again, many times: `cycles BASE_URL [TIMES]`. Prints the numbers of threads and open files
//! of this process before and after.

use std::{env, error::Error, fs, time::Duration};

use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let base_url = arguments.next().ok_or("usage: cycles BASE_URL [TIMES]")?;
    let times: u32 = arguments.next().map_or(Ok(1_000), |times| times.parse())?;
    // Allocates what stays until the process ends.
    cycle(&base_url).await?;
    show().await?;
    for _ in 0..times {
        cycle(&base_url).await?;
    }
    show().await
}

/// Starts a provider, evaluates, waits for the stream and shuts the provider down.
async fn cycle(base_url: &str) -> Result<(), Box<dyn Error>> {
    let provider = FlipswitchProvider::builder("key").base_url(base_url).build()?;
    let (connected, is_connected) = tokio::sync::oneshot::channel();
    let connected = std::sync::Mutex::new(Some(connected));
    let _statuses = provider.add_connection_status_listener(move |status| {
        if status.to_string() == "connected" {
            let connected = connected.lock().ok().and_then(|mut connected| connected.take());
            connected.map(|connected| connected.send(()));
        }
    });
    provider.ready(PATIENCE).await?;
    let flags = provider.flags(&EvaluationContext::default().with_targeting_key("u")).await;
    flags.error().map_or(Ok(()), |error| Err(error.clone()))?;
    tokio::time::timeout(PATIENCE, is_connected).await??;
    provider.shutdown().await;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
async fn show() -> Result<(), Box<dyn Error>> {
    let threads = || Ok::<_, std::io::Error>(fs::read_dir("/proc/self/task")?.count());
    // The operating system takes a moment to remove a thread that has ended.
    for _ in 0..1_000 {
        if threads()? == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let threads = threads()?;
    let files = fs::read_dir("/proc/self/fd")?.count();
    println!("{threads} threads, {files} files");
    Ok(())
}
