package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

func TestImageKeepsItsPromises(t *testing.T) {
	t.Parallel()
	for _, fault := range imageFaults(readRepoFile(t, "../../Dockerfile"), readRepoFile(t, "../../go.mod")) {
		t.Error(fault)
	}
}

// TestImageCheckFindsEachBrokenPromise changes one thing of the Dockerfile at a
// time: a check that cannot fail promises nothing.
func TestImageCheckFindsEachBrokenPromise(t *testing.T) {
	t.Parallel()
	dockerfile, goMod := readRepoFile(t, "../../Dockerfile"), readRepoFile(t, "../../go.mod")
	tests := map[string]struct {
		old, replacement string
		want             string
	}{
		"one stage":             {"FROM scratch", "RUN true", "two stages"},
		"a shell":               {"FROM scratch", "FROM debian:12", "nothing but the binary"},
		"a command in it":       {"FROM scratch", "FROM scratch\nRUN id", "nothing can run"},
		"root":                  {"USER 65532:65532", "USER 0:0", "not root"},
		"no user":               {"USER 65532:65532", "", "not root"},
		"a user by name":        {"USER 65532:65532", "USER tokenward", "not root"},
		"back to root":          {"USER 65532:65532", "USER 65532:65532\nUSER 0", "not root"},
		"dynamic":               {"CGO_ENABLED=0", "CGO_ENABLED=1", "CGO_ENABLED=0"},
		"paths of the builder":  {"-trimpath", "", "-trimpath"},
		"no version":            {"-X main.version", "-X main.other", "main.version"},
		"no revision":           {"-X main.revision", "-X main.other", "main.revision"},
		"a floating Go":         {"golang:1.26.8-bookworm", "golang:latest", "pins its Go"},
		"a Go half pinned":      {"golang:1.26.8-bookworm", "golang:1.26-bookworm", "pins its Go"},
		"an older Go":           {"golang:1.26.8-bookworm", "golang:1.25.9-bookworm", "go.mod"},
		"a newer Go":            {"golang:1.26.8-bookworm", "golang:1.27.0-bookworm", "go.mod"},
		"another toolchain":     {"GOTOOLCHAIN=local", "", "GOTOOLCHAIN=local"},
		"no health check":       {"HEALTHCHECK", "LABEL a=b #", "health check"},
		"health by a shell":     {`CMD ["/tokenward", "health"]`, "CMD /tokenward health", "health check"},
		"started by a shell":    {`ENTRYPOINT ["/tokenward"]`, "ENTRYPOINT /tokenward", "entry point"},
		"no authorities":        {"COPY --from=build /etc/ssl", "COPY /etc/ssl", "certificates"},
		"data of another owner": {"--chown=65532:65532", "--chown=1000:1000", "/data"},
		"fetched over the net":  {"COPY --from=build /out/tokenward /tokenward", "ADD https://example.com/tokenward /tokenward", "ADD"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(dockerfile, tt.old) {
				t.Fatalf("the Dockerfile has no %q to change", tt.old)
			}
			faults := imageFaults(strings.Replace(dockerfile, tt.old, tt.replacement, 1), goMod)
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, tt.want) }) {
				t.Errorf("got %q, want a fault with %q", faults, tt.want)
			}
		})
	}
}

// imageFaults returns which promises of the image a Dockerfile breaks.
func imageFaults(dockerfile, goMod string) (faults []string) {
	stages := dockerStages(dockerfile)
	if len(stages) < 2 {
		return []string{"the image is made in two stages, so that the compiler is not in it"}
	}
	builder, final := stages[0], stages[len(stages)-1]
	promise := func(kept bool, format string, args ...any) {
		if !kept {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}

	image := regexp.MustCompile(`golang:(1\.\d+)\.(\d+)-`).FindStringSubmatch(builder.first("FROM"))
	wanted := regexp.MustCompile(`(?m)^go (1\.\d+)\.(\d+)$`).FindStringSubmatch(goMod)
	promise(image != nil, "the builder pins its Go to the patch release: %s", builder.first("FROM"))
	promise(wanted != nil, "go.mod names its Go to the patch release")
	if image != nil && wanted != nil {
		promise(image[1] == wanted[1] && parseNumber(image[2]) >= parseNumber(wanted[2]), "the builder's Go (%s.%s) is the release of go.mod (%s.%s) or a later patch of it", image[1], image[2], wanted[1], wanted[2])
	}
	build := builder.last("RUN")
	for _, part := range []string{"CGO_ENABLED=0", "-trimpath", "-X main.version=$VERSION", "-X main.revision=$REVISION", "GOTOOLCHAIN=local"} {
		promise(strings.Contains(build, part), "the binary is built with %s", part)
	}

	promise(final.first("FROM") == "scratch", "the image holds nothing but the binary: FROM scratch, not %s", final.first("FROM"))
	promise(len(final["RUN"])+len(final["SHELL"]) == 0, "nothing can run in an empty image")
	promise(len(final["ADD"])+len(builder["ADD"]) == 0, "ADD fetches and unpacks; COPY does not")
	user := regexp.MustCompile(`^([1-9]\d*):[1-9]\d*$`).FindStringSubmatch(final.last("USER"))
	promise(user != nil, "the user is not root, and a number: USER %q", final.last("USER"))
	promise(final.last("ENTRYPOINT") == `["/tokenward"]`, "the entry point is the binary itself, without a shell: ENTRYPOINT %s", final.last("ENTRYPOINT"))
	promise(strings.HasSuffix(final.last("HEALTHCHECK"), `CMD ["/tokenward", "health"]`), "the health check is the binary itself, without a shell: HEALTHCHECK %s", final.last("HEALTHCHECK"))
	promise(final.copies("--from=build /etc/ssl/certs/ca-certificates.crt "), "the certificates of public authorities are in the image, for an upstream with TLS")
	promise(final.copies("--from=build --chown="+final.last("USER")+" /out/data /data"), "/data belongs to the user")
	return faults
}

// dockerStage holds the instructions of one stage: for each keyword its
// arguments, in order, on one line.
type dockerStage map[string][]string

func (s dockerStage) first(keyword string) string {
	if len(s[keyword]) == 0 {
		return ""
	}
	return s[keyword][0]
}

func (s dockerStage) last(keyword string) string {
	if len(s[keyword]) == 0 {
		return ""
	}
	return s[keyword][len(s[keyword])-1]
}

func (s dockerStage) copies(prefix string) bool {
	return slices.ContainsFunc(s["COPY"], func(c string) bool { return strings.HasPrefix(c, prefix) })
}

func dockerStages(dockerfile string) (stages []dockerStage) {
	joined := regexp.MustCompile(`\\\n\s*`).ReplaceAllString(dockerfile, "")
	for line := range strings.Lines(joined) {
		keyword, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if keyword == "" || strings.HasPrefix(keyword, "#") {
			continue
		}
		if keyword == "FROM" {
			stages = append(stages, dockerStage{})
		}
		if len(stages) > 0 {
			s := stages[len(stages)-1]
			s[keyword] = append(s[keyword], strings.TrimSpace(rest))
		}
	}
	return stages
}

func TestDeployedConfigurationsLoad(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"../../deploy/docker/tokenward.yaml", "../../deploy/systemd/tokenward.yaml"} {
		cfg, err := loadConfig(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if !loopback(cfg.Admin.Listen) || len(cfg.TokenStore.PepperFiles) == 0 || len(cfg.Routes) == 0 {
			t.Errorf("%s: an example keeps the token APIs on loopback, has a pepper, and routes", path)
		}
	}
}

// sidecar is what the test reads of deploy/kubernetes/sidecar.yaml.
type sidecar struct {
	Kind string            `yaml:"kind"`
	Data map[string]string `yaml:"data"`
	Spec struct {
		Replicas int `yaml:"replicas"`
		Template struct {
			Spec sidecarPod `yaml:"spec"`
		} `yaml:"template"`
		VolumeClaimTemplates []struct {
			Metadata struct {
				Name string `yaml:"name"`
			} `yaml:"metadata"`
		} `yaml:"volumeClaimTemplates"`
	} `yaml:"spec"`
}

type sidecarPod struct {
	Automount       *bool              `yaml:"automountServiceAccountToken"`
	Grace           int                `yaml:"terminationGracePeriodSeconds"`
	Containers      []sidecarContainer `yaml:"containers"`
	SecurityContext struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		FSGroup      int  `yaml:"fsGroup"`
	} `yaml:"securityContext"`
}

type sidecarContainer struct {
	Name  string   `yaml:"name"`
	Args  []string `yaml:"args"`
	Ports []struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	} `yaml:"ports"`
	Startup   sidecarProbe `yaml:"startupProbe"`
	Readiness sidecarProbe `yaml:"readinessProbe"`
	Liveness  sidecarProbe `yaml:"livenessProbe"`
	Lifecycle struct {
		PreStop struct {
			Sleep struct {
				Seconds int `yaml:"seconds"`
			} `yaml:"sleep"`
		} `yaml:"preStop"`
	} `yaml:"lifecycle"`
	SecurityContext struct {
		RunAsUser    int   `yaml:"runAsUser"`
		Escalation   *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRoot bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type sidecarProbe struct {
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
}

func TestSidecarManifestKeepsItsPromises(t *testing.T) {
	t.Parallel()
	docs := make(map[string]sidecar)
	for text := range strings.SplitSeq(readRepoFile(t, "../../deploy/kubernetes/sidecar.yaml"), "\n---\n") {
		var doc sidecar
		if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatal(err)
		}
		docs[doc.Kind] = doc
	}
	cfg, err := parseConfig("sidecar.yaml", []byte(docs["ConfigMap"].Data["tokenward.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	set := docs["StatefulSet"].Spec
	pod := set.Template.Spec
	at := slices.IndexFunc(pod.Containers, func(c sidecarContainer) bool { return c.Name == "tokenward" })
	if at < 0 {
		t.Fatal("no container tokenward")
	}
	guard := pod.Containers[at]

	if set.Replicas != 1 {
		t.Error("the store is one file with one writer: one replica")
	}
	if !loopback(cfg.Admin.Listen) {
		t.Error("the token APIs are not for other pods")
	}
	if up := upstreamURL(cfg.Proxy.Upstream[0]); !loopback(up.Host) {
		t.Errorf("the app is on the pod's loopback, not on %s", up)
	}
	if pod.Automount == nil || *pod.Automount || !pod.SecurityContext.RunAsNonRoot || pod.SecurityContext.FSGroup == 0 {
		t.Error("the pod has no account token, is not root, and has a group for its files")
	}
	wait := guard.Lifecycle.PreStop.Sleep.Seconds
	if need := int(cfg.Proxy.Timeouts.Drain.Seconds()) + wait; wait == 0 || pod.Grace <= need {
		t.Errorf("%d s of grace are not more than draining and the wait before (%d s)", pod.Grace, need)
	}
	for i, c := range pod.Containers {
		if sleep := c.Lifecycle.PreStop.Sleep.Seconds; i != at && sleep <= wait {
			t.Errorf("container %s is stopped after %d s, and requests go on to it for %d s", c.Name, sleep, wait)
		}
	}
	for _, c := range pod.Containers {
		s := c.SecurityContext
		if s.Escalation == nil || *s.Escalation || !s.ReadOnlyRoot || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
			t.Errorf("container %s has rights that it does not need: %+v", c.Name, s)
		}
	}
	if user := dockerStages(readRepoFile(t, "../../Dockerfile"))[1].last("USER"); !strings.HasPrefix(user, strconv.Itoa(guard.SecurityContext.RunAsUser)+":") {
		t.Errorf("the manifest runs as %d, the image as %s", guard.SecurityContext.RunAsUser, user)
	}
	for _, probe := range []struct {
		path string
		sidecarProbe
	}{{"/readyz", guard.Startup}, {"/readyz", guard.Readiness}, {"/healthz", guard.Liveness}} {
		if get := probe.HTTPGet; get.Path != probe.path || get.Port != "metrics" {
			t.Errorf("a probe asks %+v, not %s on metrics", get, probe.path)
		}
	}
	for _, p := range guard.Ports {
		listen := map[string]string{"http": cfg.Proxy.Listen, "metrics": cfg.Metrics.Listen}[p.Name]
		if listen != fmt.Sprintf(":%d", p.ContainerPort) {
			t.Errorf("port %s is %d, the configuration listens on %q", p.Name, p.ContainerPort, listen)
		}
	}
	for _, path := range append([]string{cfg.TokenStore.Path, cfg.Audit.Path, guard.Args[len(guard.Args)-1]}, cfg.TokenStore.PepperFiles...) {
		mounted := false
		for _, m := range guard.VolumeMounts {
			mounted = mounted || strings.HasPrefix(path, m.MountPath+"/")
		}
		if !mounted {
			t.Errorf("%s is on no volume", path)
		}
	}
	if len(set.VolumeClaimTemplates) != 1 || set.VolumeClaimTemplates[0].Metadata.Name != "data" {
		t.Error("the store is on a volume that outlives the pod")
	}
}

func readRepoFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// parseNumber reads decimal digits.
func parseNumber(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return -1
	}
	return n
}
