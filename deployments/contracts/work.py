"""How much work a job is, as keys, queues and routers count it."""

from deployments.contracts.jobs import ImageJob, real_steps

LATENT_PIXEL = 8  # pixels a side


def work_of(job: ImageJob) -> int:
    """UNet pixel-steps of a job: images x steps x latent pixels x frames, twice with guidance."""
    steps = job.num_inference_steps
    if job.image is not None:
        steps = real_steps(steps, job.strength)
    twins = 2 if job.guidance_scale > 1 else 1
    return steps * twins * decoding_of(job)


def decoding_of(job: ImageJob) -> int:
    """Latent pixels that the VAE decodes of a job's results."""
    latent = (job.width // LATENT_PIXEL) * (job.height // LATENT_PIXEL)
    return len(job.seeds) * latent * (job.num_frames or 1)
