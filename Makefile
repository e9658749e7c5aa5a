# make demo   set up .venv, build, run the demonstration
# make test   the same set-up, then every test; parts alone: make lint | native | consumer | pytest
# make cuda   build the extension with CUDA kernels, where nvcc is; CUDA_ARCHS="9.0" for some GPUs only, as make test does
# make emulated   Python tests of the ops for CUDA, whose kernels run on the emulator
# make cuda_native   the same library by CMake, a C++ program with it, and the tests of kernels on a GPU, if there is one
# make gpu    where a GPU is: those under compute-sanitizer, the Python tests on it, the benchmark
# make slow   the slow tests, emulated, cuda_native, and the tests on the oldest and newest torch that are supported
# make format | clean
#
# What is done is recorded by stamp files in .venv and build, so that a second run does only what is missing.

TORCH := 2.14.1
OTHER_TORCHES := 2.11.0 2.15.0

VENV := .venv
STAMPS := $(VENV)/.stamps
PIP := $(VENV)/bin/python -m pip --quiet
CUDA_ARCHS ?= 8.0 9.0 12.0
NATIVE := build/native
CUDA_NATIVE := build/cuda_native
PREFIX := build/prefix
KERNELS = $$(ls -d $(CURDIR)/build/objects-torch-$(TORCH)*/csrc/cpu/kernels | head -1)
GPU_TESTS := $(CUDA_NATIVE)/tests/cpp/cuda/cuda_tests_gpu.dir/cuda_tests_gpu
NEEDS_NVCC = if ! command -v nvcc >/dev/null; then echo "make $@: SKIPPED, for nvcc is not on PATH"; exit 0; fi; set -e
JOBS ?= $(shell nproc)
export MAX_JOBS ?= $(JOBS)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cuh')
CPP_TESTS := $(shell find tests/cpp benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cuh')
BUILD_FILES := setup.py pyproject.toml torch_ext/_version.py $(wildcard cmake/*)

.DELETE_ON_ERROR:
.PHONY: demo test slow format clean lint native consumer pytest install cuda cuda_native emulated gpu

demo: install
	python -m torch_ext.demo

# Cheap ones first. Each part fails by itself; the last line is printed only if all have passed.
test: CUDA_ARCHS := 9.0
test: lint native consumer cuda pytest
	@echo "make test: PASSED (lint, native, consumer, cuda, pytest)"

pytest: install $(STAMPS)/test
	pytest -m "not slow"

lint: $(STAMPS)/test
	clang-format --dry-run -Werror $(CPP) $(CPP_TESTS)
	ruff check .
	ruff format --check .

format: $(STAMPS)/test
	clang-format -i $(CPP) $(CPP_TESTS)
	ruff check --fix .
	ruff format .

# GoogleTest: the kernels under sanitizers, those for CUDA on an emulator, and the C++ API; then an installed copy in
# build/prefix.
native: install $(NATIVE)/build.ninja
	cmake --build $(NATIVE) -j $(JOBS)
	ctest --test-dir $(NATIVE) --output-on-failure -j $(JOBS)
	cmake --install $(NATIVE) --prefix $(PREFIX)

# With the kernels that the Python package has: compiled once.
$(NATIVE)/build.ninja: CMakeLists.txt $(wildcard cmake/*) $(STAMPS)/test | $(STAMPS)/install $(STAMPS)/debian-test
	cmake -S . -B $(NATIVE) -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DPython3_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python -DTORCH_EXT_BUILD_TESTS=ON -DTORCH_EXT_SANITIZE=address,undefined \
	  -DTORCH_EXT_KERNELS=$(KERNELS)
	@touch $@

# A C++ program on the copy in build/prefix; `make pytest` builds it once more, on the copy in the Python package.
consumer: native install
	TORCH_EXT_PREFIX=$(CURDIR)/$(PREFIX) pytest tests/test_consumer.py

# A wheel in build/cuda, whose kernels may not spill; its copy in build/cuda/site loads, also where there is no GPU.
# What nvcc compiled before is compiled again, for its report.
cuda: install
	@$(NEEDS_NVCC); \
	rm -rf build/cuda build/objects-torch-*/csrc/cuda && mkdir -p build/cuda; \
	FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" python -m pip wheel --verbose --no-deps --no-build-isolation \
	  -w build/cuda . > build/cuda/log 2>&1 || { tail -100 build/cuda/log; exit 1; }; \
	python tests/cpp/cuda/ptxas.py build/cuda/log; \
	python -m pip --quiet install --no-deps --target build/cuda/site build/cuda/*.whl; \
	cd build/cuda/site && python -m torch_ext info | tee ../info && grep --quiet "CUDA: *yes" ../info; \
	echo "make cuda: PASSED ($(CUDA_ARCHS))"

OPS_TESTS := functional deform layers errors gradients transforms opcheck opinfo script_export convert
emulated: install $(NATIVE)/build.ninja
	cmake --build $(NATIVE) -j $(JOBS) --target cuda_emulated
	TORCH_EXT_EMULATED_CUDA=$(CURDIR)/$(NATIVE)/tests/cpp/cuda/libcuda_emulated.so \
	  pytest -m "not slow" $(OPS_TESTS:%=tests/test_%.py)

cuda_native: install $(STAMPS)/test $(STAMPS)/debian-test
	@$(NEEDS_NVCC); \
	cmake -S . -B $(CUDA_NATIVE) -G Ninja -DPython3_EXECUTABLE=$(CURDIR)/$(VENV)/bin/python -DTORCH_EXT_BUILD_TESTS=ON \
	  -DTORCH_EXT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90 -DTORCH_EXT_KERNELS=$(KERNELS); \
	cmake --build $(CUDA_NATIVE) -j $(JOBS) --target torch_ext cuda_tests_gpu; \
	cmake --install $(CUDA_NATIVE) --prefix $(CUDA_NATIVE)/prefix; \
	TORCH_EXT_PREFIX=$(CURDIR)/$(CUDA_NATIVE)/prefix pytest tests/test_consumer.py; \
	$(GPU_TESTS)

# In .venv if there is one, else in the environment at hand, whose PyTorch is that of the GPU.
gpu:
	python -m pip install --no-build-isolation --no-deps -e .
	cmake -S . -B $(CUDA_NATIVE) -G Ninja -DPython3_EXECUTABLE="$$(command -v python)" -DTORCH_EXT_BUILD_TESTS=ON \
	  -DTORCH_EXT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=native
	cmake --build $(CUDA_NATIVE) -j $(JOBS) --target cuda_tests_gpu
	$(GPU_TESTS)
	for tool in memcheck racecheck initcheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 $(GPU_TESTS) --gtest_filter=-*Large* || exit 1; done
	pytest -m "not slow" -k cuda
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 pytest -m "not slow" -k "cuda and not graph and not memory"
	python benchmarks/bench.py --device cuda

slow: pytest emulated cuda_native $(OTHER_TORCHES:%=build/torch-%/passed)
	pytest -m slow
	@echo "make slow: PASSED (slow tests; torch $(OTHER_TORCHES))"

# Run outside the source tree, whose torch_ext holds the library for torch $(TORCH).
build/torch-%/passed: $(CPP) $(BUILD_FILES) $(shell find torch_ext tests -name '*.py') | $(STAMPS)/debian
	test -x $(@D)/bin/pip || python3 -m venv $(@D)
	$(@D)/bin/python -m pip --quiet install --upgrade pip setuptools
	$(@D)/bin/python -m pip --quiet install torch==$* --group test
	$(@D)/bin/python -m pip --quiet install --no-build-isolation ".[demo]"
	cd $(@D) && PATH="$(CURDIR)/$(@D)/bin:$$PATH" bin/pytest -c $(CURDIR)/pyproject.toml -m "not slow" $(CURDIR)/tests
	touch $@

clean:
	rm -rf build dist *.egg-info torch_ext/lib torch_ext/include torch_ext/share $(STAMPS)/install

# ---- set-up ----

# An editable install: Python files are used as they are, so only C++ and the build's own files call for a new one.
install: $(STAMPS)/install

$(STAMPS)/install: $(STAMPS)/torch $(CPP) $(BUILD_FILES)
	$(PIP) install --no-build-isolation -e ".[demo]"
	@touch $@

$(STAMPS)/test: pyproject.toml | $(STAMPS)/torch
	$(PIP) install --group test
	@touch $@

$(STAMPS)/torch: | $(STAMPS)/debian
	test -x $(VENV)/bin/pip || python3 -m venv $(VENV)
	$(PIP) install --upgrade pip setuptools ninja
	$(PIP) install torch==$(TORCH) torchvision
	@touch $@

# $(call debian,TEST,PACKAGES,ELSE): installs the Debian packages unless the test succeeds; if that is not to be, runs ELSE.
define debian
	@mkdir -p $(STAMPS)
	@{ $(1); } >/dev/null 2>&1 || { \
	  if [ "$$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root=sudo; \
	  else echo "Only root can install it: apt-get install $(2)" >&2; as_root=false; fi; \
	  $$as_root apt-get update --quiet=2 && $$as_root apt-get install --yes --quiet=2 $(2); } || $(or $(3),exit 1)
	@touch $@
endef

$(STAMPS)/debian:
	$(call debian,g++ --version && python3 -c 'import ensurepip$(comma) venv',g++ python3-venv)

$(STAMPS)/debian-test:
	$(call debian,test -e /usr/include/gtest/gtest.h,libgtest-dev)
	$(call debian,echo 'int main() {}' | clang++ -fsanitize=thread -x c++ - -o /dev/null,clang libclang-rt-dev,\
	  echo "No clang++ with ThreadSanitizer: cuda_tests_tsan is left out")

comma := ,
