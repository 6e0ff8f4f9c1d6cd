// Package archtest holds the walls of the house: which package may import which.
package archtest

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/magnetar-io/magnetar/"

// A wall forbids the packages under from to import those under to.
type wall struct {
	from   string
	to     string
	except []string // packages under from that may
	reason string
}

var walls = []wall{
	{from: "", to: "e2e", reason: "whole-system stories stand above everything", except: []string{"e2e"}},
	{from: "broker", to: "bookie", reason: "a broker knows bookies through ensemble", except: nil},
	{from: "bookie", to: "broker", reason: "a bookie knows nothing of topics"},
	{from: "bookie", to: "client", reason: "a bookie knows nothing of clients"},
	{from: "discovery", to: "broker", reason: "node packages do not import each other"},
	{from: "client", to: "broker", reason: "a client knows brokers through proto"},
	{from: "client", to: "bookie", reason: "a client knows nothing of bookies"},
	{from: "client", to: "discovery", reason: "a client knows discovery through proto"},
	{from: "", to: "internal/standalone", reason: "only commands and end-to-end tests start whole nodes", except: []string{"cmd", "e2e", "internal/standalone"}},
	{from: "", to: "cmd", reason: "commands are leaves", except: []string{"cmd", "e2e"}},
	{from: "", to: "go.etcd.io/etcd/client", reason: "the metadata store stands behind meta.Store", except: []string{"discovery/meta", "discovery/metaserver"}},
	{from: "", to: "go.etcd.io/etcd/server", reason: "the etcd server stands behind metaserver", except: []string{"discovery/metaserver"}},
	{from: "", to: "github.com/cockroachdb/pebble", reason: "the key-value engine is hidden by index", except: []string{"bookie/internal/index"}},
	{from: "bookie/ledger", to: "os", reason: "pure: touches no file"},
	{from: "bookie/ledger", to: "net", reason: "pure: touches no network"},
	{from: "discovery/bundle", to: "os", reason: "pure: touches no file"},
	{from: "discovery/bundle", to: "net", reason: "pure: touches no network"},
	{from: "broker/internal/cursor", to: "os", reason: "pure: touches no file"},
	{from: "broker/internal/cursor", to: "net", reason: "pure: touches no network"},
	{from: "broker/internal/cursor", to: "github.com/hashicorp/go-hclog", reason: "pure: logs nothing"},
}

// brokerMay are the packages under bookie that a broker is allowed to know.
var brokerMay = []string{"bookie/ensemble", "bookie/ledger"}

func under(path, folder string) bool {
	return folder == "" || path == folder || strings.HasPrefix(path, folder+"/")
}

func anyUnder(path string, folders []string) bool {
	for _, f := range folders {
		if under(path, f) {
			return true
		}
	}
	return false
}

// TestImportsRunOneWay shows that no package of the product imports what lies
// behind one of the walls above. Tests may.
func TestImportsRunOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		seen++
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			imp = strings.TrimPrefix(imp, module)
			for _, w := range walls {
				if !under(path, w.from) || anyUnder(path, w.except) || !under(imp, w.to) {
					continue
				}
				if w.from == "broker" && w.to == "bookie" && anyUnder(imp, brokerMay) {
					continue
				}
				t.Errorf("%s imports %s: %s", path, imp, w.reason)
			}
		}
	}
	if seen < 20 {
		t.Fatalf("go list saw only %d packages", seen)
	}
}
