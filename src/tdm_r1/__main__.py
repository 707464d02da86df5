"""`python -m tdm_r1` is `tdm-r1`."""

from tdm_r1.cli import main

if __name__ == "__main__":
    main()
