# The targets are what CI runs. PROFILE=dev builds faster and runs slower.
PROFILE ?= release

.PHONY: help setup web demo up images test test-web test-resume test-upload-20g test-faults test-containers test-manifests test-rolling check bench bench-api bench-callbacks bench-reporting bench-trainer soak build

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what building and running need (Debian, Ubuntu; says what to do elsewhere)
	@scripts/setup.sh

demo: ## From nothing to a trained adapter: build, start, import, train, compare
	@HONE_PROFILE=$(PROFILE) scripts/demo.sh

web: ## Build the web UI, which the next build takes into the backend (Node 20 or newer)
	@scripts/build-web.sh

build: ## Build the programs
	@scripts/build.sh $(PROFILE)

up: setup build ## Build and start everything on this machine, until Ctrl-C
	@target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/hone up

images: web ## Build the container images, print their sizes, write their SBOMs
	@HONE_PROFILE=$(PROFILE) scripts/images.sh

test: setup ## Run all tests, with real Postgres, S3 and trainer processes
	@scripts/test.sh

test-web: ## Test the web UI in a real browser against everything real (Debian, Ubuntu)
	@scripts/test-web.sh

test-resume: ## Kill the trainer 100 times at random moments and compare the resumed runs' bytes
	@HONE_KILLS=100 scripts/test.sh --no-capture -E 'test(killed_at_random_moments)'

test-upload-20g: setup ## Upload 20 GB with five cuts through a release gateway (20 GB of disk, some minutes)
	@scripts/test-upload.sh 19074

test-faults: setup ## Run every row of the fault matrix with 50 seeds (FAULT_SEEDS), hours
	@scripts/test-faults.sh

test-containers: setup ## Train the same in containers and in `hone up`, and compare the adapters' digests
	@HONE_PROFILE=$(PROFILE) scripts/e2e-containers.sh

test-rolling: setup ## Kill one of two backends after the other while twenty jobs train
	@HONE_PROFILE=$(PROFILE) scripts/test-rolling.sh

test-manifests: ## Check Kubernetes manifests, compose file and alert rules
	@scripts/test-manifests.sh

check: ## Formatting, lints, dependency directions, file lengths, licences
	@scripts/check.sh

bench: setup build ## Measure start-up, memory and latency of the programs
	@python3 scripts/bench_laptop.py target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

bench-api: setup build ## Measure the API over 1,000,000 jobs and 50,000,000 points (about 20 minutes, 15 GB of disk)
	@python3 scripts/bench_api.py target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE)) --write

bench-callbacks: setup build ## Measure callbacks and live streams under load, and a kill -9 of the backend (5 minutes)
	@cargo build --quiet --profile $(PROFILE) --workspace --example load_callbacks --example load_streams
	@python3 scripts/bench_callbacks.py target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE)) target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/examples --write

soak: setup build ## Kill backend, storage and database at random for 15 minutes while 200 jobs run, and count (half an hour)
	@cargo build --quiet --profile $(PROFILE) --workspace --example script_trainer
	@python3 scripts/soak.py target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE)) target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/examples --write

bench-reporting: setup build ## Measure step times while the backend is away for 10 minutes (half an hour)
	@python3 scripts/bench_reporting.py target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE)) --down 600 --write

bench-trainer: ## Compare training speed and memory with PyTorch + PEFT (own virtual environment, about 15 minutes)
	@cargo build --quiet --release --workspace --example bench_step
	@python3 scripts/bench_trainer.py --write
