"""What a request cost, as answers say it."""

from deployments.contracts.api import InputTokens, UsageBody
from deployments.contracts.jobs import Usage


def usage_body(usage: Usage) -> UsageBody:
    """The usage figures as HTTP says them."""
    return UsageBody(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokens(text_tokens=usage.prompt_tokens),
        output_tokens=usage.image_tokens,
        total_tokens=usage.prompt_tokens + usage.image_tokens,
        denoising_steps=usage.denoising_steps,
    )
