//! Evaluations of OpenFeature clients as events.

use flipswitch::{
    FlipswitchProvider, WeakProvider, integration,
    open_feature::{
        EvaluationContext, EvaluationDetails, EvaluationError, Hook, HookContext, HookHints, Value, async_trait,
    },
};

/// A hook that reports the evaluations of OpenFeature clients, of whichever provider, as events
/// `feature_flag.evaluation` of OpenTelemetry's semantic conventions.
///
/// The events are those of [`evaluation_events`](flipswitch::FlipswitchProviderBuilder::evaluation_events): of `tracing`, with
/// the target `flipswitch::evaluation` and the level INFO. Each evaluation is reported. The context has the name that the
/// provider's [settings](flipswitch::FlipswitchProviderBuilder::evaluation_context_id) give it: that of the evaluation, or that
/// of the request in which the client evaluates.
///
/// A provider that reports evaluations itself needs no hook: its evaluations would be reported twice. The hook leaves them out
/// then, and a warning says so.
///
/// ```
/// # use flipswitch::{FlipswitchProvider, open_feature::OpenFeature, serde_json::json};
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
    /// Makes a hook. The settings and the secret of a provider name the contexts. Once its last handle is gone, nothing is
    /// reported any more.
    #[must_use]
    pub fn new(provider: &FlipswitchProvider) -> Self {
        if integration::reports_evaluations(provider) {
            tracing::warn!(
                target: "flipswitch",
                "evaluation_events of the provider and EvaluationHook exclude each other: the hook leaves out the evaluations \
                 of Flipswitch providers; use one of the two"
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

    // After an error it does not know the code.
    async fn finally<'a>(&self, _: &HookContext<'a>, _: &EvaluationDetails<Value>, _: Option<&'a HookHints>) {}
}
