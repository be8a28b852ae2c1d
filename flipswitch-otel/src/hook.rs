//! Evaluations by OpenFeature clients as events.

use flipswitch::{
    FlipswitchProvider, WeakProvider, integration,
    open_feature::{
        EvaluationContext, EvaluationDetails, EvaluationError, Hook, HookContext, HookHints, Value, async_trait,
    },
};

/// Reports the evaluations by OpenFeature clients with any provider as `feature_flag.evaluation` events, which OpenTelemetry's
/// semantic conventions define.
///
/// The hook is for applications that also use other providers. If all providers are Flipswitch providers,
/// [`evaluation_events`](flipswitch::FlipswitchProviderBuilder::evaluation_events) is enough, and also reports the reads that do
/// not use a client.
///
/// The events are the same as with `evaluation_events`: `tracing` events with the target `flipswitch::evaluation` and the level
/// INFO. Each evaluation is reported. The context id is derived from the targeting key of the evaluation or, if it has none, from
/// the targeting key of the current request.
/// The provider's [`evaluation_context_id`](flipswitch::FlipswitchProviderBuilder::evaluation_context_id) option sets its form.
///
/// If `evaluation_events` is set on the provider that was passed to the hook, the evaluations by Flipswitch providers are already
/// reported. In that case, the hook leaves them out and logs a warning. Set `evaluation_events` on all Flipswitch providers
/// or on none.
///
/// ```
/// use flipswitch::{FlipswitchProvider, open_feature::OpenFeature, serde_json::json};
/// use flipswitch_otel::EvaluationHook;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let provider = FlipswitchProvider::in_memory(json!({"new-checkout": true}));
/// let mut api = OpenFeature::singleton_mut().await;
/// api.set_provider(provider.clone()).await;
/// api.add_hook(EvaluationHook::new(&provider)).await;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EvaluationHook {
    // OpenFeature keeps hooks for the lifetime of the process.
    provider: WeakProvider,
}

impl EvaluationHook {
    /// Creates a hook that uses the settings and the secret of a provider.
    ///
    /// The hook does not keep the provider alive. It reports nothing after the last handle to the provider has been dropped.
    #[must_use]
    pub fn new(provider: &FlipswitchProvider) -> Self {
        if integration::reports_evaluations(provider) {
            tracing::warn!(
                target: "flipswitch",
                "EvaluationHook leaves out the evaluations by Flipswitch providers, because evaluation_events is set on its \
                 provider"
            );
        }
        Self { provider: provider.downgrade() }
    }

    fn report(&self, context: &HookContext<'_>, outcome: Result<&EvaluationDetails<Value>, &EvaluationError>) {
        if let Some(provider) = self.provider.upgrade() {
            integration::report_evaluation(&provider, context, outcome);
        }
    }
}

#[async_trait]
impl Hook for EvaluationHook {
    async fn before<'a>(
        &self,
        _: &HookContext<'a>,
        _: Option<&'a HookHints>,
    ) -> Result<Option<EvaluationContext>, EvaluationError> {
        Ok(None)
    }

    async fn after<'a>(
        &self,
        context: &HookContext<'a>,
        details: &EvaluationDetails<Value>,
        _: Option<&'a HookHints>,
    ) -> Result<(), EvaluationError> {
        self.report(context, Ok(details));
        Ok(())
    }

    async fn error<'a>(&self, context: &HookContext<'a>, error: &EvaluationError, _: Option<&'a HookHints>) {
        self.report(context, Err(error));
    }

    // OpenFeature does not pass the error code here, so `after` and `error` report instead.
    async fn finally<'a>(&self, _: &HookContext<'a>, _: &EvaluationDetails<Value>, _: Option<&'a HookHints>) {}
}
