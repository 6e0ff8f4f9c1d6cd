package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/process"
	"github.com/magnetar-io/magnetar/internal/roles"
	"github.com/magnetar-io/magnetar/internal/standalone"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// exposed is what a metric of the product can be asked for.
type exposed map[string][]string // name, as in an expression, to its labels

// target are the labels that Prometheus gives every series it scrapes.
var target = []string{"job", "instance"}

// recorder is a registry that notes the name, the labels and the help of what is
// registered, for those too that have no series yet.
type recorder struct {
	*prometheus.Registry
	found  exposed
	help   map[string]string
	labels map[string]string // that vary
	kinds  map[string]string // counter, gauge or histogram, of what has series
}

// described is how a description prints; it has no other way to tell its name.
var described = regexp.MustCompile(`fqName: "(\w+)", help: (".*"), unit: "\w*", constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

func (r *recorder) Register(c prometheus.Collector) error {
	descriptions := make(chan *prometheus.Desc)
	go func() { c.Describe(descriptions); close(descriptions) }()
	var unread error
	for d := range descriptions { // to its end, so that the goroutine ends
		m := described.FindStringSubmatch(d.String())
		if m == nil {
			unread = fmt.Errorf("description %s has another form", d)
			continue
		}
		labels := slices.Clone(target)
		for _, pair := range strings.Split(m[3]+","+m[4], ",") {
			if name, _, _ := strings.Cut(pair, "="); name != "" {
				labels = append(labels, name)
			}
		}
		help, err := strconv.Unquote(m[2])
		unread = errors.Join(unread, err)
		r.found[m[1]], r.help[m[1]], r.labels[m[1]] = labels, help, m[4]
	}
	return errors.Join(unread, r.Registry.Register(c))
}

func (r *recorder) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

// register makes a bookie and a broker as their processes make them, and what every
// process has besides, and returns the registry, filled, once they are gone.
func register(t *testing.T) *recorder {
	t.Helper()
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	log := hclog.NewNullLogger()
	r := &recorder{Registry: process.New(log, nil).Registry, found: exposed{},
		help: map[string]string{}, labels: map[string]string{}, kinds: map[string]string{}}
	store := meta.NewMem()
	defer store.Close()
	common := roles.Common{Cluster: "test", Store: meta.Measured(store, r), Log: log, Metrics: r, Now: time.Now}
	b, err := roles.StartBookie(ctx, roles.BookieOptions{Common: common, FS: vfs.NewMem(), Dir: "/data", ID: "bookie-1",
		Address: "bookie-1:1", MemoryBytes: 32 << 20, DiskBytes: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	k, err := roles.NewBroker(ctx, roles.BrokerOptions{Common: common, ID: "broker-1", Address: "broker-1:1", MemoryBytes: 64 << 20, Quorum: standalone.Quorum(1),
		Local: func(ledger.Member) (ensemble.Bookie, bool) { return b.Node, true }})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Kill()

	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		r.kinds[f.GetName()] = strings.ToLower(f.GetType().String())
		if r.found[f.GetName()] == nil {
			r.found[f.GetName()] = target // of the runtime and the process
		}
	}
	return r
}

// registeredMetrics are the series that an expression can ask for.
func registeredMetrics(t *testing.T) exposed {
	t.Helper()
	r := register(t)
	for name, kind := range r.kinds {
		if labels := r.found[name]; kind == "histogram" {
			delete(r.found, name)
			r.found[name+"_bucket"] = append(slices.Clone(labels), "le")
			r.found[name+"_sum"], r.found[name+"_count"] = labels, labels
		}
	}
	r.found["up"] = target // it comes from the scrape
	return r.found
}

// ruleFile is a file of Prometheus's rules, as far as ours use it.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Alert       string
	Expr        string
	For         string
	Labels      map[string]string
	Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	decoder := yaml.NewDecoder(strings.NewReader(readDeployed(t, "prometheus/rules.yaml")))
	decoder.KnownFields(true)
	var file ruleFile
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for _, g := range file.Groups {
		if g.Name == "" || len(g.Rules) == 0 {
			t.Errorf("group %q has %d rules", g.Name, len(g.Rules))
		}
		rules = append(rules, g.Rules...)
	}
	return rules
}

// TestAlertsAreWhole shows that each alert has what a person who is woken by it
// needs: how bad it is, what is the matter and what to do.
func TestAlertsAreWhole(t *testing.T) {
	rules := readRules(t)
	seen := map[string]bool{}
	for _, r := range rules {
		if !regexp.MustCompile(`^Magnetar[A-Za-z]+$`).MatchString(r.Alert) || seen[r.Alert] {
			t.Errorf("alert %q: want a name of its own, Magnetar…", r.Alert)
		}
		seen[r.Alert] = true
		if r.Expr == "" {
			t.Errorf("alert %s has no expr", r.Alert)
		}
		if !regexp.MustCompile(`^\d+[smhd]$`).MatchString(r.For) {
			t.Errorf("alert %s: for is %q, want a duration such as 5m", r.Alert, r.For)
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" || len(r.Labels) != 1 {
			t.Errorf("alert %s has the labels %v, want severity critical or warning", r.Alert, r.Labels)
		}
		if r.Annotations["summary"] == "" || r.Annotations["action"] == "" || len(r.Annotations) != 2 {
			t.Errorf("alert %s has the annotations %v, want summary and action", r.Alert, slices.Collect(maps.Keys(r.Annotations)))
		}
	}
	if len(rules) < 10 {
		t.Errorf("found %d alerts only", len(rules))
	}
	for _, r := range rules {
		for _, other := range regexp.MustCompile(`Magnetar[A-Z][A-Za-z]+`).FindAllString(r.Annotations["action"], -1) {
			if !seen[other] {
				t.Errorf("alert %s points to %s, which there is not", r.Alert, other)
			}
		}
	}
}

// TestAlertsUseMetricsThereAre shows that every name and label in the expressions and
// texts of the alerts is one that a process of the product exposes, or that the
// scrape adds.
func TestAlertsUseMetricsThereAre(t *testing.T) {
	metrics, jobs := registeredMetrics(t), scrapedJobs(t)
	used := map[string]bool{}
	for _, r := range readRules(t) {
		e, err := parseExpr(r.Expr)
		if err != nil {
			t.Errorf("alert %s: %v", r.Alert, err)
		}
		var labels []string
		for _, name := range e.metrics {
			if metrics[name] == nil {
				t.Errorf("alert %s: no process exposes %s", r.Alert, name)
			}
			used[name] = true
			labels = append(labels, metrics[name]...)
		}
		if len(e.metrics) == 0 {
			t.Errorf("alert %s asks for no metric", r.Alert)
		}
		for _, m := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(fmt.Sprint(r.Annotations), -1) {
			e.labels = append(e.labels, m[1])
		}
		for _, l := range e.labels {
			if !slices.Contains(labels, l) {
				t.Errorf("alert %s: none of %v has a label %s", r.Alert, e.metrics, l)
			}
		}
		for _, job := range e.jobs {
			matches := regexp.MustCompile("^(?:" + job + ")$").MatchString
			if !slices.ContainsFunc(slices.Collect(maps.Keys(jobs)), matches) {
				t.Errorf("alert %s: scrape.yaml has no job %s", r.Alert, job)
			}
		}
	}
	if len(used) < 15 {
		t.Errorf("the alerts use %d metrics only", len(used))
	}
}

// expr is what an expression of PromQL names.
type expr struct {
	metrics []string
	labels  []string // in matchers and groupings
	jobs    []string // patterns that the label job is matched with
}

var (
	grouping  = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	matchers  = regexp.MustCompile(`\{([^}]*)\}`)
	matcher   = regexp.MustCompile(`^\s*(\w+)\s*(?:=|!=|=~|!~)\s*"([^"]*)"\s*$`)
	window    = regexp.MustCompile(`\[\d+[smhd]\]`)
	word      = regexp.MustCompile(`[a-zA-Z_:][\w:]*(?:\s*\()?`)
	operators = []string{"and", "or", "unless"}
	functions = []string{"changes", "count", "histogram_quantile", "increase", "max", "predict_linear", "rate", "sum", "vector"}
)

// parseExpr takes the names out of an expression. It knows as much of PromQL as
// the alerts use, and refuses functions it does not know.
func parseExpr(text string) (expr, error) {
	var e expr
	for _, m := range grouping.FindAllStringSubmatch(text, -1) {
		for _, l := range strings.Split(m[1], ",") {
			if l = strings.TrimSpace(l); l != "" {
				e.labels = append(e.labels, l)
			}
		}
	}
	text = grouping.ReplaceAllString(text, "")
	for _, all := range matchers.FindAllStringSubmatch(text, -1) {
		for _, one := range strings.Split(all[1], ",") {
			m := matcher.FindStringSubmatch(one)
			if m == nil {
				return e, fmt.Errorf("%q is no matcher", one)
			}
			e.labels = append(e.labels, m[1])
			if m[1] == "job" {
				e.jobs = append(e.jobs, m[2])
			}
		}
	}
	text = window.ReplaceAllString(matchers.ReplaceAllString(text, ""), "")
	for _, w := range word.FindAllString(text, -1) {
		name, call := strings.CutSuffix(w, "(")
		name = strings.TrimSpace(name)
		switch {
		case slices.Contains(operators, name):
		case call && !slices.Contains(functions, name):
			return e, fmt.Errorf("%s is no function that the alerts use", name)
		case call, slices.Contains(functions, name): // "sum by (…) (" has lost its grouping
		default:
			e.metrics = append(e.metrics, name)
		}
	}
	return e, nil
}

// scrapedJobs are the jobs of scrape.yaml and their targets.
func scrapedJobs(t *testing.T) map[string][]string {
	t.Helper()
	var file struct {
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	decoder := yaml.NewDecoder(strings.NewReader(readDeployed(t, "prometheus/scrape.yaml")))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	jobs := map[string][]string{}
	for _, s := range file.ScrapeConfigs {
		for _, c := range s.StaticConfigs {
			jobs[s.JobName] = append(jobs[s.JobName], c.Targets...)
		}
	}
	return jobs
}

// TestScrapeReachesEveryRole shows that each role has its job, which asks at the
// port where the deployed configuration serves metrics.
func TestScrapeReachesEveryRole(t *testing.T) {
	jobs := scrapedJobs(t)
	for role := range declarations {
		port := loadDeployed(t, role, readDeployed(t, "config/"+role+".yaml"))["httpPort"].Value
		targets := jobs["magnetar-"+role]
		if len(targets) == 0 {
			t.Errorf("scrape.yaml has no job magnetar-%s", role)
		}
		for _, target := range targets {
			if !strings.HasSuffix(target, ":"+port) {
				t.Errorf("job magnetar-%s asks %s; the role serves metrics at port %s", role, target, port)
			}
		}
		delete(jobs, "magnetar-"+role)
	}
	if len(jobs) > 0 {
		t.Errorf("scrape.yaml has jobs of no role: %v", jobs)
	}
}
