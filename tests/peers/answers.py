"""Code that the clients in Python share: contexts, and results of OpenFeature evaluations as JSON."""

from openfeature import api
from openfeature.evaluation_context import EvaluationContext


def evaluation_context(context):
    attributes = dict(context)
    return EvaluationContext(attributes.pop("targetingKey", None), attributes)


def details(type, key, default, context):
    """Evaluates a flag through OpenFeature's client, and returns the details."""
    details = getattr(api.get_client(), f"get_{type}_details")(key, default, evaluation_context(context))
    if details.error_code:
        return {"value": details.value, "error": details.error_code.value, "message": details.error_message}
    return {
        "value": details.value,
        "variant": details.variant,
        "reason": details.reason,
        "metadata": dict(details.flag_metadata),
    }
