"""What NVML answers, through `pynvml`: each question asked alone, answers kept as they are.

An answer is plain data that JSON can carry: a number, a text, a list or a mapping; or `{"error": code}`, with NVML's
code, or `"garbage"` for what could not be read at all (a text in no encoding). `nvml_facts` judges them. All of this
runs in a process of its own (`nvml_process`), since a call may never come back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

try:
    import pynvml
except ImportError:
    pynvml = None

Answers = dict[str, Any]

_GPU_INSTANCES_MOST: Final = 16
LIBRARY_NOT_FOUND: Final = 12
FUNCTION_NOT_FOUND: Final = 13

#: Questions to a GPU whose answer is one number, text or tuple: the name of the answer, and NVML's function.
_PLAIN: Final = {
    "name": "nvmlDeviceGetName",
    "uuid": "nvmlDeviceGetUUID",
    "serial": "nvmlDeviceGetSerial",
    "moduleId": "nvmlDeviceGetModuleId",
    "architecture": "nvmlDeviceGetArchitecture",
    "computeCapability": "nvmlDeviceGetCudaComputeCapability",
    "virtualizationMode": "nvmlDeviceGetVirtualizationMode",
    "migMode": "nvmlDeviceGetMigMode",
    "remappedRows": "nvmlDeviceGetRemappedRows",
    "retiredPagesPending": "nvmlDeviceGetRetiredPagesPendingStatus",
}

_FORERUNNERS: Final = {
    "nvmlInitWithFlags": ("nvmlInit_v2", "nvmlInit"),
    "nvmlSystemGetCudaDriverVersion_v2": ("nvmlSystemGetCudaDriverVersion",),
    "nvmlDeviceGetCount_v2": ("nvmlDeviceGetCount",),
    "nvmlDeviceGetHandleByIndex_v2": ("nvmlDeviceGetHandleByIndex",),
    "nvmlDeviceGetPciInfo_v3": ("nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo"),
    "nvmlDeviceGetNvLinkRemotePciInfo_v2": ("nvmlDeviceGetNvLinkRemotePciInfo",),
    "nvmlEventSetWait_v2": ("nvmlEventSetWait",),
}


def _error(code: int | str) -> Answers:
    return {"error": code}


def is_error(answer: Any) -> bool:
    """Whether an answer is none."""
    return isinstance(answer, dict) and "error" in answer


class NvmlError(Exception):
    """NVML can not be had; `code` is its error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Nvml:
    """NVML as long as it is initialised. Raises `NvmlError` where it can not be."""

    def __init__(self) -> None:
        if pynvml is None:
            raise NvmlError(
                LIBRARY_NOT_FOUND, "the package pynvml is not installed: pip install 'vmtenancy[agent]'"
            )
        self._lib: Any = pynvml
        try:
            _accept_older_names(pynvml)
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            message = _why_not_loaded() if error.value == LIBRARY_NOT_FOUND else ""
            raise NvmlError(error.value, message or str(error)) from error

    def ask(self, function: str, *args: Any, take: Callable[[Any], Any] = lambda answer: answer) -> Any:
        """One answer, or what went wrong instead. `take` makes plain data of pynvml's."""
        call = getattr(self._lib, function, None)
        if call is None:
            return _error(FUNCTION_NOT_FOUND)
        try:
            return take(call(*args))
        except self._lib.NVMLError as error:
            return _error(error.value)
        except (ValueError, TypeError, OverflowError, MemoryError, ctypes.ArgumentError):
            return _error("garbage")

    # -- the node --------------------------------------------------------------------------------------------

    def system(self) -> Answers:
        """Versions, and how many GPUs there are said to be."""
        return {
            "driverVersion": self.ask("nvmlSystemGetDriverVersion"),
            "nvmlVersion": self.ask("nvmlSystemGetNVMLVersion"),
            "cudaVersion": self.ask("nvmlSystemGetCudaDriverVersion_v2"),
            "count": self.ask("nvmlDeviceGetCount"),
        }

    def open(self, index: int) -> tuple[Any, Answers]:
        """Handle and place of a GPU; the handle is None where there is none."""
        handle = self.ask("nvmlDeviceGetHandleByIndex", index)
        if is_error(handle):
            return None, {"index": index, "handle": handle}
        return handle, {"index": index, "pci": self.ask("nvmlDeviceGetPciInfo", handle, take=_pci)}

    # -- a GPU -----------------------------------------------------------------------------------------------

    def device(self, handle: Any) -> Answers:
        """All that is asked of one GPU, but how it reaches others."""
        answers = {name: self.ask(function, handle) for name, function in _PLAIN.items()}
        return answers | {
            "memory": self.ask("nvmlDeviceGetMemoryInfo", handle, take=lambda memory: memory.total),
            "memoryAffinity": self.ask("nvmlDeviceGetMemoryAffinity", handle, 2, 0, take=list),
            "fabric": self._fabric(handle),
            "nvLinks": list(self._nv_links(handle)),
            "mig": self._mig(handle, answers["migMode"]),
            "vgpu": self._vgpu(handle),
        }

    def ancestor(self, one: Any, other: Any) -> Any:
        """The topology level at which two GPUs meet."""
        return self.ask("nvmlDeviceGetTopologyCommonAncestor", one, other)

    def _fabric(self, handle: Any) -> Any:
        info = self._lib.c_nvmlGpuFabricInfo_v2_t()
        answer = self.ask("nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info))
        if answer == _error(FUNCTION_NOT_FOUND):
            info = self._lib.c_nvmlGpuFabricInfo_t()
            answer = self.ask("nvmlDeviceGetGpuFabricInfo", handle, ctypes.byref(info))
        if is_error(answer):
            return answer
        return {"cluster": bytes(info.clusterUuid).hex(), "status": info.status, "clique": info.cliqueId} | {
            "state": info.state
        }

    def _nv_links(self, handle: Any) -> Iterator[Answers]:
        for link in range(self._lib.NVML_NVLINK_MAX_LINKS):
            state = self.ask("nvmlDeviceGetNvLinkState", handle, link)
            if is_error(state):
                return
            if state == 1:
                yield {
                    "remote": self.ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link, take=_pci),
                    "type": self.ask("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link),
                }

    # -- what it is split into -------------------------------------------------------------------------------

    def _mig(self, handle: Any, mode: Any) -> Any:
        if is_error(mode):
            return mode
        profiles = list(self._mig_profiles(handle))
        if not mode[0]:
            return {"profiles": profiles, "instances": []}
        instances = [
            {**instance, "profileId": profile}
            for profile in {profile["id"] for profile in profiles}
            for instance in self._gpu_instances(handle, profile)
        ]
        return {"profiles": profiles, "instances": instances, "devices": list(self._mig_devices(handle))}

    def _mig_profiles(self, handle: Any) -> Iterator[Answers]:
        for profile in range(self._lib.NVML_GPU_INSTANCE_PROFILE_COUNT):
            info = self.ask("nvmlDeviceGetGpuInstanceProfileInfo", handle, profile, take=_profile)
            if info == _error(FUNCTION_NOT_FOUND):
                info = self.ask("nvmlDeviceGetGpuInstanceProfileInfo", handle, profile, 1, take=_profile)
            if not is_error(info):
                yield info | {"placements": self._placements(handle, info["id"])}

    def _placements(self, handle: Any, profile: int) -> Any:
        count = ctypes.c_uint(0)
        ask = "nvmlDeviceGetGpuInstancePossiblePlacements"
        answer = self.ask(ask, handle, profile, None, ctypes.byref(count))
        if is_error(answer) or count.value > 64:
            return answer
        found = (self._lib.c_nvmlGpuInstancePlacement_t * max(count.value, 1))()
        answer = self.ask(ask, handle, profile, found, ctypes.byref(count))
        return answer if is_error(answer) else [[p.start, p.size] for p in found[: count.value]]

    def _gpu_instances(self, handle: Any, profile: int) -> Iterator[Answers]:
        count = ctypes.c_uint(_GPU_INSTANCES_MOST)
        found = (self._lib.c_nvmlGpuInstance_t * _GPU_INSTANCES_MOST)()
        answer = self.ask("nvmlDeviceGetGpuInstances", handle, profile, found, ctypes.byref(count))
        for instance in [] if is_error(answer) else found[: count.value]:
            info = self.ask("nvmlGpuInstanceGetInfo", instance, take=_instance)
            if not is_error(info):
                yield info

    def _mig_devices(self, handle: Any) -> Iterator[Answers]:
        most = self.ask("nvmlDeviceGetMaxMigDeviceCount", handle)
        for index in range(min(most, 64) if isinstance(most, int) else 0):
            device = self.ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            if not is_error(device):
                yield {
                    "instance": self.ask("nvmlDeviceGetGpuInstanceId", device),
                    "uuid": self.ask("nvmlDeviceGetUUID", device),
                }

    def _vgpu(self, handle: Any) -> Any:
        supported = self.ask("nvmlDeviceGetSupportedVgpus", handle, take=list)
        if is_error(supported) or not supported:
            return supported
        creatable = self.ask("nvmlDeviceGetCreatableVgpus", handle, take=list)
        active = self.ask("nvmlDeviceGetActiveVgpus", handle, take=list)
        return {
            "types": [{"id": one, "name": self.ask("nvmlVgpuTypeGetName", one)} for one in supported[:256]],
            "creatable": creatable,
            "active": active
            if is_error(active)
            else [self.ask("nvmlVgpuInstanceGetType", instance) for instance in active[:256]],
        }

    # -- telemetry and events --------------------------------------------------------------------------------

    def sample(self, handle: Any) -> Answers:
        """What changes all the time: watts and the like, for metrics alone."""
        lib = self._lib
        memory = self.ask("nvmlDeviceGetMemoryInfo", handle, take=lambda m: [m.used, m.total])
        return {
            "power": self.ask("nvmlDeviceGetPowerUsage", handle),
            "temperature": self.ask("nvmlDeviceGetTemperature", handle, lib.NVML_TEMPERATURE_GPU),
            "smClock": self.ask("nvmlDeviceGetClockInfo", handle, lib.NVML_CLOCK_SM),
            "memoryClock": self.ask("nvmlDeviceGetClockInfo", handle, lib.NVML_CLOCK_MEM),
            "utilization": self.ask(
                "nvmlDeviceGetUtilizationRates", handle, take=lambda u: [u.gpu, u.memory]
            ),
            "memory": memory,
        }

    def watch(self, handles: Mapping[str, Any]) -> EventSet | None:
        """An event set over XIDs of GPUs, given by address; None where none of them offers events."""
        events = self.ask("nvmlEventSetCreate")
        if is_error(events):
            return None
        wanted = self._lib.nvmlEventTypeXidCriticalError
        watched = {}
        for address, handle in handles.items():
            offered = self.ask("nvmlDeviceGetSupportedEventTypes", handle)
            if not isinstance(offered, int) or not offered & wanted:
                continue
            if not is_error(self.ask("nvmlDeviceRegisterEvents", handle, wanted, events)):
                watched[_pointer(handle)] = address
        return EventSet(self, events, watched) if watched else None


class EventSet:
    """Waits for what NVML reports by itself. `watched` are addresses by handle: a GPU that is lost can not be asked."""

    def __init__(self, nvml: Nvml, events: Any, watched: Mapping[int | None, str]) -> None:
        self._nvml, self._events, self._watched = nvml, events, watched

    def wait(self, timeout_ms: int) -> Any:
        """The next XID as `{"address": …, "xid": …}`, or an error: NVML's 10 where none came in time."""
        event = self._nvml.ask("nvmlEventSetWait_v2", self._events, timeout_ms)
        if is_error(event):
            return event
        return {"address": self._watched.get(_pointer(event.device), ""), "xid": event.eventData}


def _pointer(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _why_not_loaded() -> str:
    """The loader's own words: a library that is there and can not be loaded is another matter than none."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return str(error)
    return ""


def _accept_older_names(lib: Any) -> None:
    """Have pynvml call the forerunner of a function where the library has no other.

    It asks for the newest names alone. These forerunners take the same arguments and fill in the beginning of the same
    structures. Raises `NVMLError` where there is no library.
    """
    lib._LoadNvmlLibrary()
    for name, forerunners in _FORERUNNERS.items():
        there = [one for one in (name, *forerunners) if hasattr(lib.nvmlLib, one)]
        if there:
            lib._nvmlGetFunctionPointer_cache[name] = getattr(lib.nvmlLib, there[0])


def _pci(info: Any) -> Answers:
    try:
        text = info.busId
    except UnicodeDecodeError:  # pynvml decodes as it reads; the numbers beside it may be right
        text = ""
    return {
        "busId": text,
        "numbers": [info.domain, info.bus, info.device],
        "deviceId": info.pciDeviceId,
    }


def _profile(info: Any) -> Answers:
    return {
        "id": info.id,
        "name": getattr(info, "name", ""),
        "slices": info.sliceCount,
        "most": info.instanceCount,
        "memoryMib": info.memorySizeMB,
    }


def _instance(info: Any) -> Answers:
    return {"id": info.id, "start": info.placement.start, "size": info.placement.size}
