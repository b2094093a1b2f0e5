"""The shape of a Serve config, before anything in it is looked at."""

from collections.abc import Iterator


def misshapen(config: object) -> Iterator[str]:
    """What keeps a config from being looked at: lists that are none, and what is no mapping in
    them."""
    if not isinstance(config, dict):
        yield "a Serve config is a mapping with `applications`"
        return
    applications = config.get("applications")
    if not isinstance(applications, list):
        yield "applications: it is a list of applications, each a mapping"
        return
    for number, application in enumerate(applications):
        if not isinstance(application, dict):
            yield f"applications.{number}: an application is a mapping"
            continue
        name = application.get("name", number)
        deployments = application.get("deployments", [])
        if not isinstance(deployments, list):
            yield f"{name}.deployments: it is a list of deployments, each a mapping"
            continue
        for index, deployment in enumerate(deployments):
            if not isinstance(deployment, dict):
                yield f"{name}.deployments.{index}: a deployment is a mapping"
