"""URLs of pictures by which somebody might reach what he should not."""

INSIDE = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "localhost"),
    *("[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "169.254.169.254", "2852039166"),
    *("metadata.google.internal", "10.0.0.1", "\u2460\u2461\u2466.0.0.1", "127.0.0.1.nip.io"),
)
DISGUISES = (
    "https://{inside}/a.png",
    "https://{allowed}@{inside}/a.png",
    "https://{allowed}:443@{inside}/a.png",
    "https://{inside}#@{allowed}/a.png",
    "https://{inside}?@{allowed}/a.png",
    "https://{inside}\\@{allowed}/a.png",
    "https://{allowed}\\@{inside}/a.png",
    "https://{inside}/@{allowed}",
    "https://{allowed}.{inside}/a.png",
    "https://{inside}%00.{allowed}/a.png",
    "https://{inside}%2f{allowed}/a.png",
    "https://{inside}\t@{allowed}/a.png",
    "https://{allowed}\n@{inside}/a.png",
    "https:{inside}/a.png",
    "https:/{inside}/a.png",
    "https:///{inside}/a.png",
    "https:\\\\{inside}\\a.png",
    "https://{allowed}:{inside}/a.png",
    "HTTPS://{inside}/a.png",
    " https://{inside}/a.png",
    "https://{allowed}.@{inside}/",
)
OTHERS = (
    *("http://{allowed}/a.png", "file:///etc/passwd", "file://{inside}/etc/passwd", "//{inside}/a"),
    *("ftp://{inside}/a", "gopher://{inside}:6379/_PING", "dict://{inside}/", "unix:///run/x.sock"),
    *(
        "s3://{inside}/a",
        "s3://../a",
        "s3://",
        "s3://b/../../etc/passwd",
        "s3:{inside}",
        "s3://b@c/d",
    ),
    *("data:text/html,<svg/onload=a>", "data:;base64,!", "data:image/svg+xml,<svg/>", "data:"),
    *("blob:https://{allowed}/1", "javascript:a", "map-", "map-depth-../../etc/passwd", "\x00"),
)


def hostile(allowed: str) -> list[str]:
    """Every disguise for every place inside, with a host from which pictures may be fetched."""
    return sorted(
        {
            form.format(allowed=allowed, inside=inside)
            for form in (*DISGUISES, *OTHERS)
            for inside in INSIDE
        }
    )
