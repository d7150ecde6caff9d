"""Task families: what varies on a body, what is paid, and the fixed tasks of the test. One file per paper."""
