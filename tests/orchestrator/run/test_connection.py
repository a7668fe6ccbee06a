import subprocess
import sys


def test_a_process_that_has_used_ray_ends_without_destructors_and_with_its_own_exit_code() -> None:
    # Handlers run in the reverse order of their registration: this one stands for the destructors, which were registered before.
    program = """if True:
        import atexit, ctypes, sys
        libc = ctypes.CDLL(None)
        libc.on_exit(libc.abort, None)
        from orchestrator.run.connection import local_ray
        with local_ray():
            pass
        atexit.register(print, "atexit")
        print("buffered")
        sys.exit(3)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "buffered\natexit\n"), done.stderr
