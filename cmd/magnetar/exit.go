package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/client"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/metaserver"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/standalone"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Exit codes, the same for every command.
const (
	exitOK        = 0
	exitError     = 1
	exitUsage     = 2
	exitNotFound  = 3
	exitRefused   = 4
	exitUnhealthy = 10
	exitTimeout   = 124
)

// coded is an error that knows its exit code.
type coded struct {
	code int
	err  error
}

func (c *coded) Error() string { return c.err.Error() }
func (c *coded) Unwrap() error { return c.err }

// errSilent ends a command that has already said what was wrong.
var errSilent = errors.New("already reported")

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &coded{exitUsage, fmt.Errorf(format+"\nRun '%s --help' for usage.", append(args, cmd.CommandPath())...)}
}

func refusedf(format string, args ...any) error {
	return &coded{exitRefused, fmt.Errorf(format, args...)}
}

func notFoundf(format string, args ...any) error {
	return &coded{exitNotFound, fmt.Errorf(format, args...)}
}

// exitCode maps an error to the exit code that scripts rely on.
func exitCode(err error) int {
	var c *coded
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	for _, row := range errorCodes {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	switch code := grpcCode(err); code {
	case codes.NotFound:
		return exitNotFound
	case codes.FailedPrecondition, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.ResourceExhausted, codes.InvalidArgument:
		return exitRefused
	case codes.DeadlineExceeded:
		return exitTimeout
	}
	return exitError
}

// errorCodes are the exit codes of the client's errors, and of a data directory or
// a name that is not this process's.
var errorCodes = []struct {
	err  error
	code int
}{
	{errTimeOver, exitTimeout},
	{client.ErrUnknownOutcome, exitError},
	{client.ErrNotFound, exitNotFound},
	{client.ErrInvalid, exitRefused},
	{client.ErrTooLarge, exitRefused},
	{client.ErrBusy, exitRefused},
	{client.ErrFenced, exitRefused},
	{client.ErrQuota, exitRefused},
	{client.ErrUnsupported, exitRefused},
	{vfs.ErrLocked, exitRefused},
	{standalone.ErrDataDir, exitRefused},
	{metaserver.ErrDataDir, exitRefused},
	{bookie.ErrDataDir, exitRefused},
	{bookie.ErrLocked, exitRefused},
	{bookie.ErrNewer, exitRefused},
	{bookie.ErrForeign, exitRefused},
	{bookie.ErrReplaced, exitRefused},
	{bookie.ErrTaken, exitRefused},
}

// grpcCode is the status code anywhere in err's chain; Unknown if there is none.
func grpcCode(err error) codes.Code {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Code()
	}
	return codes.Unknown
}

// explain says an error to a person: what, where, and what next.
func explain(err error, servers string) string {
	text := plain(err)
	if errors.Is(err, client.ErrTooLarge) {
		return text + "\nA broker that is started with a higher --max-message-bytes takes it."
	}
	if rpcerr.Told(err) && grpcCode(err) == codes.Unavailable { // somebody did answer
		if errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrUncertain) {
			return fmt.Sprintf("%s\n%s answered, but not its metadata store. Start that again ('magnetar metadata start'); what is open is served meanwhile.", text, servers)
		}
		return text + "\nThe cluster cannot do that just now; try again. 'magnetar cluster health' says what is wrong."
	}
	if errors.Is(err, meta.ErrUnavailable) {
		return text // of a role, which has no --server; the text names the store
	}
	if grpcCode(err) == codes.Unavailable || errors.Is(err, errNoAnswer) {
		return fmt.Sprintf("%v\nNo answer from %s. Is a node running there? 'magnetar standalone' starts one; --server or MAGNETAR_SERVER names another.", text, servers)
	}
	if errors.Is(err, context.DeadlineExceeded) || grpcCode(err) == codes.DeadlineExceeded {
		return fmt.Sprintf("%v\nNothing is known of the outcome. --timeout allows more time; 'magnetar cluster health' says what is wrong.", text)
	}
	return text
}

// plain is the text of an error without what gRPC sets in front of it.
func plain(err error) string {
	return grpcPrefix.ReplaceAllString(err.Error(), "")
}

var grpcPrefix = regexp.MustCompile(`rpc error: code = [A-Za-z]+ desc = `)
