package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/internal/entry"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// ledgerView is a ledger as printed.
type ledgerView struct {
	Ledger      int64          `json:"ledger"`
	State       string         `json:"state"`
	WriteQuorum uint32         `json:"writeQuorum"`
	AckQuorum   uint32         `json:"ackQuorum"`
	LastEntry   int64          `json:"lastEntry"`
	Length      int64          `json:"length"`
	Term        int64          `json:"term"`
	Verify      bool           `json:"verify"`
	Parent      string         `json:"parent"`
	CreatedAt   string         `json:"createdAt"`
	Fragments   []fragmentView `json:"fragments"`
}

type fragmentView struct {
	FirstEntry int64    `json:"firstEntry"`
	Ensemble   []string `json:"ensemble"`
}

func viewLedger(l *adminv1.LedgerSummary) ledgerView {
	v := ledgerView{l.GetLedger(), l.GetState(), l.GetWriteQuorum(), l.GetAckQuorum(), l.GetLastEntry(), l.GetLength(),
		l.GetTerm(), l.GetVerify(), l.GetParent(), timeText(l.GetCreatedAtMs()), []fragmentView{}}
	for _, f := range l.GetFragments() {
		fv := fragmentView{f.GetFirstEntry(), []string{}}
		for _, m := range f.GetEnsemble() {
			name := m.GetBookie()
			if name == "" {
				name = "-"
			}
			fv.Ensemble = append(fv.Ensemble, name)
		}
		v.Fragments = append(v.Fragments, fv)
	}
	return v
}

func (v ledgerView) fragments() string {
	var parts []string
	for _, f := range v.Fragments {
		parts = append(parts, fmt.Sprintf("%d:[%s]", f.FirstEntry, strings.Join(f.Ensemble, " ")))
	}
	return strings.Join(parts, " ")
}

func (a *app) ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ledger", Short: "Ledgers: where the entries lie"}
	list := &cobra.Command{Use: "list", Short: "List the ledgers, of one topic or all", Args: cobra.NoArgs}
	topic := list.Flags().String("topic", "", "only those of this topic partition")
	limit := list.Flags().Uint32("limit", 1000, "at most so many")
	after := list.Flags().Int64("after", 0, "only those with a higher id")
	list.RunE = func(c *cobra.Command, _ []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			resp, err := q.admin.ListLedgers(ctx, adminv1.ListLedgersRequest_builder{Topic: topic, After: after, Limit: limit}.Build())
			if err != nil {
				return err
			}
			var rows []ledgerView
			for _, l := range resp.GetLedgers() {
				rows = append(rows, viewLedger(l))
			}
			if resp.GetMore() && len(rows) > 0 {
				fmt.Fprintf(a.err, "There are more: --after %d\n", rows[len(rows)-1].Ledger)
			}
			return printRows(a, rows, []column[ledgerView]{
				{"LEDGER", func(v ledgerView) string { return fmt.Sprint(v.Ledger) }},
				{"STATE", func(v ledgerView) string { return v.State }},
				{"LAST", func(v ledgerView) string { return fmt.Sprint(v.LastEntry) }},
				{"BYTES", func(v ledgerView) string { return fmt.Sprint(v.Length) }},
				{"PARENT", func(v ledgerView) string { return v.Parent }},
				{"FRAGMENTS", ledgerView.fragments},
			})
		})
	}
	describe := &cobra.Command{Use: "describe LEDGER", Short: "Show a ledger's record", Args: cobra.ExactArgs(1)}
	describe.RunE = func(c *cobra.Command, args []string) error {
		id, err := ledgerArgument(c, args[0])
		if err != nil {
			return err
		}
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			resp, err := q.admin.DescribeLedger(ctx, adminv1.DescribeLedgerRequest_builder{Ledger: &id}.Build())
			if err != nil {
				return err
			}
			return printOne(a, viewLedger(resp.GetLedger()), []column[ledgerView]{
				{"ledger", func(v ledgerView) string { return fmt.Sprint(v.Ledger) }},
				{"state", func(v ledgerView) string { return v.State }},
				{"quorum", func(v ledgerView) string { return fmt.Sprintf("write %d, ack %d", v.WriteQuorum, v.AckQuorum) }},
				{"last entry", func(v ledgerView) string { return fmt.Sprint(v.LastEntry) }},
				{"bytes", func(v ledgerView) string { return fmt.Sprint(v.Length) }},
				{"term", func(v ledgerView) string { return fmt.Sprint(v.Term) }},
				{"parent", func(v ledgerView) string { return v.Parent }},
				{"fragments", ledgerView.fragments},
				{"created", func(v ledgerView) string { return v.CreatedAt }},
			})
		})
	}
	cmd.AddCommand(list, describe, a.ledgerRead(), a.ledgerVerify())
	return cmd
}

func (a *app) ledgerRead() *cobra.Command {
	cmd := &cobra.Command{Use: "read LEDGER [FIRST-ENTRY]", Short: "Show entries of a ledger", Args: cobra.RangeArgs(1, 2)}
	count := cmd.Flags().Uint32P("count", "n", 10, "how many entries")
	type row struct {
		Entry    int64  `json:"entry"`
		LAC      int64  `json:"lastAddConfirmed"`
		Messages int    `json:"messages"`
		Bytes    int    `json:"bytes"`
		Body     []byte `json:"body"`
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		id, err := ledgerArgument(c, args[0])
		if err != nil {
			return err
		}
		first := int64(0)
		if len(args) == 2 {
			if first, err = strconv.ParseInt(args[1], 10, 64); err != nil || first < 0 {
				return usagef(c, "%q is not an entry; want a number of at least 0", args[1])
			}
		}
		return a.askBroker(c.Context(), func(ctx context.Context, ledgers adminv1.LedgerAdminClient) error {
			resp, err := ledgers.ReadLedger(ctx, adminv1.ReadLedgerRequest_builder{Ledger: &id, FirstEntry: &first, Entries: count}.Build())
			if err != nil {
				return err
			}
			var rows []row
			for _, e := range resp.GetEntries() {
				rows = append(rows, row{e.GetEntry(), e.GetLastAddConfirmed(), messagesIn(e.GetBody()), len(e.GetBody()), e.GetBody()})
			}
			return printRows(a, rows, []column[row]{
				{"ENTRY", func(r row) string { return fmt.Sprint(r.Entry) }},
				{"LAC", func(r row) string { return fmt.Sprint(r.LAC) }},
				{"MESSAGES", func(r row) string { return fmt.Sprint(r.Messages) }},
				{"BYTES", func(r row) string { return fmt.Sprint(r.Bytes) }},
			})
		})
	}
	return cmd
}

// messagesIn is how many messages a body holds; 0 where it is no batch, as in a
// bundle log.
func messagesIn(body []byte) int {
	_, producerPart, err := entry.ParseBody(body)
	if err != nil {
		return 0
	}
	h, _, err := entry.ParseHeader(producerPart)
	if err != nil {
		return 0
	}
	return int(h.Messages)
}

func (a *app) ledgerVerify() *cobra.Command {
	cmd := &cobra.Command{Use: "verify LEDGER", Short: "Read and check every copy of every entry", Args: cobra.ExactArgs(1)}
	type copyView struct {
		Bookie  string `json:"bookie"`
		Entries int64  `json:"entries"`
		Missing int64  `json:"missing"`
		Corrupt int64  `json:"corrupt"`
		Unknown int64  `json:"unknown"`
		Problem string `json:"problem,omitempty"`
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		id, err := ledgerArgument(c, args[0])
		if err != nil {
			return err
		}
		ctx, cancel := a.stream(c.Context()) // a large ledger takes its time
		defer cancel()
		return a.askBrokerUntil(ctx, func(ctx context.Context, ledgers adminv1.LedgerAdminClient) error {
			resp, err := a.verify(ctx, ledgers, id)
			if err != nil {
				return err
			}
			var rows []copyView
			for _, r := range resp.GetCopies() {
				rows = append(rows, copyView{r.GetBookie(), r.GetEntries(), r.GetMissing(), r.GetCorrupt(), r.GetUnknown(), r.GetProblem()})
			}
			if err := printRows(a, rows, []column[copyView]{
				{"BOOKIE", func(v copyView) string { return v.Bookie }},
				{"GOOD", func(v copyView) string { return fmt.Sprint(v.Entries) }},
				{"MISSING", func(v copyView) string { return fmt.Sprint(v.Missing) }},
				{"CORRUPT", func(v copyView) string { return fmt.Sprint(v.Corrupt) }},
				{"UNKNOWN", func(v copyView) string { return fmt.Sprint(v.Unknown) }},
				{"PROBLEM", func(v copyView) string { return v.Problem }},
			}); err != nil {
				return err
			}
			fmt.Fprintf(a.err, "ledger %d is %s with %d entries; %d have fewer good copies than the write quorum, %d have none\n",
				resp.GetLedger(), resp.GetState(), resp.GetEntries(), resp.GetShortEntries(), resp.GetLostEntries())
			if resp.GetShortEntries() > 0 {
				return &coded{exitUnhealthy, fmt.Errorf("ledger %d lacks copies; start the bookies that are down, then verify again", id)}
			}
			return nil
		})
	}
	return cmd
}

// verify returns the report on a ledger, and shows meanwhile how far it is.
func (a *app) verify(ctx context.Context, ledgers adminv1.LedgerAdminClient, id int64) (*adminv1.VerifyLedgerResponse, error) {
	var checked, toCheck atomic.Int64
	end := showProgress(ctx, a.err, func() string {
		return fmt.Sprintf("checked %d of %d copies of entries", checked.Load(), toCheck.Load())
	})
	defer end()
	stream, err := ledgers.VerifyLedger(ctx, adminv1.VerifyLedgerRequest_builder{Ledger: &id}.Build())
	if err != nil {
		return nil, err
	}
	for report := (*adminv1.VerifyLedgerResponse)(nil); ; {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) && report != nil {
			return report, nil
		}
		if err != nil {
			return nil, fmt.Errorf("verify ledger %d: %w", id, err)
		}
		checked.Store(resp.GetChecked())
		toCheck.Store(resp.GetToCheck())
		report = resp // the last one is
	}
}

func ledgerArgument(c *cobra.Command, text string) (int64, error) {
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, usagef(c, "%q is not a ledger id; want a number above 0", text)
	}
	return id, nil
}

// bookieView is a bookie as printed.
type bookieView struct {
	ID             string `json:"id"`
	Incarnation    string `json:"incarnation"`
	Address        string `json:"address"`
	Rack           string `json:"rack"`
	State          string `json:"state"`
	PID            int64  `json:"pid"`
	DiskFreeBytes  uint64 `json:"diskFreeBytes"`
	DiskTotalBytes uint64 `json:"diskTotalBytes"`
	MaxEntryBytes  uint64 `json:"maxEntryBytes"` // 0: not known
}

var bookieColumns = []column[bookieView]{
	{"BOOKIE", func(v bookieView) string { return v.ID }},
	{"STATE", func(v bookieView) string { return v.State }},
	{"ADDRESS", func(v bookieView) string { return v.Address }},
	{"RACK", func(v bookieView) string { return v.Rack }},
	{"INCARNATION", func(v bookieView) string { return v.Incarnation }},
	{"FREE", func(v bookieView) string { return fmt.Sprintf("%.1f GiB", float64(v.DiskFreeBytes)/(1<<30)) }},
	{"PID", func(v bookieView) string { return fmt.Sprint(v.PID) }},
}

// largestEntry is what a bookie takes, which its segments bound.
func (v bookieView) largestEntry() string {
	if v.MaxEntryBytes == 0 {
		return "not known"
	}
	return fmt.Sprintf("%d bytes", v.MaxEntryBytes)
}

func (q *asker) bookies(ctx context.Context) ([]bookieView, error) {
	resp, err := q.admin.ListBookies(ctx, &adminv1.ListBookiesRequest{})
	if err != nil {
		return nil, err
	}
	var rows []bookieView
	for _, b := range resp.GetBookies() {
		rows = append(rows, bookieView{b.GetId(), b.GetIncarnation(), b.GetAddress(), b.GetRack(), b.GetState(), b.GetPid(),
			b.GetDiskFreeBytes(), b.GetDiskTotalBytes(), b.GetMaxEntryBytes()})
	}
	return rows, nil
}

func (a *app) bookieClientCommands() []*cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the bookies, those that are down too", Args: cobra.NoArgs}
	list.RunE = func(c *cobra.Command, _ []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			rows, err := q.bookies(ctx)
			if err != nil {
				return err
			}
			return printRows(a, rows, bookieColumns)
		})
	}
	describe := &cobra.Command{Use: "describe BOOKIE", Short: "Show one bookie", Args: cobra.ExactArgs(1)}
	describe.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			rows, err := q.bookies(ctx)
			if err != nil {
				return err
			}
			for _, r := range rows {
				if r.ID == args[0] {
					return printOne(a, r, append(fields(bookieColumns), column[bookieView]{"largest entry", bookieView.largestEntry}))
				}
			}
			return notFoundf("there is no bookie %q; 'magnetar bookie list' shows those there are", args[0])
		})
	}
	return []*cobra.Command{list, describe}
}

// brokerView is a broker as printed.
type brokerView struct {
	ID          string `json:"id"`
	Address     string `json:"address"`
	HTTPAddress string `json:"httpAddress"`
	PID         int64  `json:"pid"`
	Version     string `json:"version"`
	LargestBody uint64 `json:"largestEntryBytes"` // 0: not known
}

func (q *asker) brokers(ctx context.Context) ([]brokerView, string, error) {
	resp, err := q.discovery.Cluster(ctx, &discoveryv1.ClusterRequest{})
	if err != nil {
		return nil, "", err
	}
	var rows []brokerView
	for _, b := range resp.GetBrokers() {
		rows = append(rows, brokerView{b.GetId(), b.GetAddress(), b.GetHttpAddress(), b.GetPid(), b.GetVersion(), b.GetLargestEntryBytes()})
	}
	return rows, resp.GetCluster(), nil
}

func (a *app) brokerClientCommands() []*cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the live brokers", Args: cobra.NoArgs}
	list.RunE = func(c *cobra.Command, _ []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			rows, _, err := q.brokers(ctx)
			if err != nil {
				return err
			}
			return printRows(a, rows, []column[brokerView]{
				{"BROKER", func(v brokerView) string { return v.ID }},
				{"ADDRESS", func(v brokerView) string { return v.Address }},
				{"HTTP", func(v brokerView) string { return v.HTTPAddress }},
				{"PID", func(v brokerView) string { return fmt.Sprint(v.PID) }},
				{"VERSION", func(v brokerView) string { return v.Version }},
			})
		})
	}
	return []*cobra.Command{list}
}
