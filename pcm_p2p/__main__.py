"""``python -m pcm_p2p``: the command ``pcm-p2p``, where its folder is not on the path."""

from pcm_p2p.cli.main import run

if __name__ == "__main__":
    run()
