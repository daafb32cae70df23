// Package snapshotter runs containerd's own snapshotter suite against `snapfs serve`.
//
// Each case gets a daemon and a root of its own. The program to start is SNAPFS, the unpack mode
// SNAPFS_UNPACK. Built and run by test_containerd_suite.py.
package snapshotter

import (
	testsuite "containerdsuite"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 60 * time.Second
)

func TestSnapfs(t *testing.T) {
	testsuite.SnapshotterSuite(t, "snapfs", serve)
}

// serve starts a daemon over root and returns its snapshotter, and how to end it.
func serve(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	state := filepath.Join(filepath.Dir(root), "state")
	address := filepath.Join(state, "snapfs.sock")
	log, err := os.Create(filepath.Join(filepath.Dir(root), "serve.log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	daemon := exec.Command(os.Getenv("SNAPFS"), "serve", "--root", root, "--state", state, "--address", address)
	daemon.Env = append(os.Environ(), "SNAPFS_UNPACK="+os.Getenv("SNAPFS_UNPACK"))
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	connection, err := dial(ctx, address, ended)
	if err != nil {
		stop(daemon, ended)
		return nil, nil, fmt.Errorf("%w\n%s", err, tail(log.Name()))
	}
	cleanup := func() error {
		connection.Close()
		if err := stop(daemon, ended); err != nil {
			return fmt.Errorf("%w\n%s", err, tail(log.Name()))
		}
		return left(filepath.Dir(root))
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "snapfs"), cleanup, nil
}

// dial connects once the daemon says through its health service that it serves.
func dial(ctx context.Context, address string, ended chan error) (*grpc.ClientConn, error) {
	connection, err := grpc.Dial("unix:"+address,
		grpc.WithInsecure(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		}))
	if err != nil {
		return nil, err
	}
	health := grpc_health_v1.NewHealthClient(connection)
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
		answer, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil && answer.Status == grpc_health_v1.HealthCheckResponse_SERVING {
			return connection, nil
		}
		select {
		case status := <-ended:
			ended <- status
			connection.Close()
			return nil, fmt.Errorf("snapfs serve ended: %v", status)
		case <-time.After(20 * time.Millisecond):
		}
	}
	connection.Close()
	return nil, fmt.Errorf("snapfs serve was not ready within %s", startTimeout)
}

func stop(daemon *exec.Cmd, ended chan error) error {
	daemon.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		ended <- err
		if err != nil {
			return fmt.Errorf("snapfs serve: %w", err)
		}
		return nil
	case <-time.After(stopTimeout):
		daemon.Process.Kill()
		return fmt.Errorf("snapfs serve did not stop within %s", stopTimeout)
	}
}

// left says what is still mounted below a case's directory.
func left(base string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, " "+base+"/") {
			return fmt.Errorf("still mounted: %s", line)
		}
	}
	return nil
}

func tail(name string) string {
	log, _ := os.ReadFile(name)
	if len(log) > 4000 {
		log = log[len(log)-4000:]
	}
	return string(log)
}
