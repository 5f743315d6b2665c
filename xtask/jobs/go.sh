# A Go module with a vendored dependency: go vet's absence aside, the usual build, run and test.
export GOPROXY=off GOFLAGS=-mod=vendor GOCACHE=/work/cache HOME=/work
mkdir -p app/vendor/example.org/greet app/work && cd app
printf 'module example.org/app\n\ngo 1.19\n\nrequire example.org/greet v1.0.0\n' >go.mod
printf '# example.org/greet v1.0.0\n## explicit; go 1.19\nexample.org/greet\n' >vendor/modules.txt
printf 'package greet\n\nfunc Hello(who string) string { return "hello " + who }\n' >vendor/example.org/greet/greet.go
cat >main.go <<'T'
package main

import (
	"fmt"
	"sync"

	"example.org/greet"
)

func sum(n int) int {
	var wg sync.WaitGroup
	results := make(chan int, n)
	for i := 0; i < n; i++ {
		wg.Add(1)
		go func(i int) { defer wg.Done(); results <- i }(i)
	}
	wg.Wait()
	close(results)
	total := 0
	for r := range results {
		total += r
	}
	return total
}

func main() { fmt.Println(greet.Hello("go"), sum(1000)) }
T
cat >main_test.go <<'T'
package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func TestSum(t *testing.T) {
	if sum(10000) != 49995000 {
		t.Fatal("sum")
	}
}

func TestExec(t *testing.T) {
	for i := 0; i < 20; i++ {
		out, err := exec.Command("echo", "x").Output()
		if err != nil || string(out) != "x\n" {
			t.Fatal(err, out)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	for i := 0; i < 100; i++ {
		if err := os.WriteFile(filepath.Join(dir, time.Duration(i).String()), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	names, _ := os.ReadDir(dir)
	if len(names) != 100 {
		t.Fatal(len(names))
	}
}
T
quiet go build -trimpath -buildvcs=false -o app .
./app
sha256sum app
if [ -n "${LONG:-}" ]; then
  go vet ./... && echo vetted
  go test -v -count=1 . 2>&1 | sed 's/[0-9.]*s)*$//'
  # Go's own packages that lean on the kernel most.
  go test -count=1 os/exec os/signal context sync path/filepath io bufio 2>&1 | sed 's/[0-9.]*s$//'
fi
