# javac, and java with threads, files and child processes.
cat >Main.java <<'T'
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;
public class Main {
  public static void main(String[] args) throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(8);
    List<Future<Long>> all = new ArrayList<>();
    for (int i = 0; i < 200; i++) { final int n = i; all.add(pool.submit(() -> LongStream.rangeClosed(0, n * 100L).sum())); }
    long total = 0;
    for (Future<Long> f : all) total += f.get();
    pool.shutdown();
    System.out.println(total + " " + pool.awaitTermination(5, TimeUnit.SECONDS));
    Path dir = Files.createTempDirectory("x");
    for (int i = 0; i < 100; i++) Files.writeString(dir.resolve("f" + i), "x".repeat(i));
    try (Stream<Path> s = Files.walk(dir)) { System.out.println(s.filter(Files::isRegularFile).mapToLong(p -> p.toFile().length()).sum()); }
    Process p = new ProcessBuilder("sh", "-c", "cat; exit 3").start();
    p.getOutputStream().write("hello".getBytes()); p.getOutputStream().close();
    System.out.println(new String(p.getInputStream().readAllBytes()) + " " + p.waitFor());
    byte[][] keep = new byte[64][];
    for (int i = 0; i < 4000; i++) keep[i % 64] = new byte[1 << 16];
    System.gc();
    WatchService w = dir.getFileSystem().newWatchService();
    dir.register(w, StandardWatchEventKinds.ENTRY_CREATE);
    Files.writeString(dir.resolve("new"), "");
    WatchKey k = w.poll(10, TimeUnit.SECONDS);
    System.out.println(k == null ? "no event" : k.pollEvents().get(0).context());
    System.out.println(Runtime.getRuntime().availableProcessors());
    Thread[] ts = new Thread[50];
    int[] count = new int[1];
    for (int i = 0; i < ts.length; i++) { ts[i] = new Thread(() -> { for (int j = 0; j < 1000; j++) synchronized (count) { count[0]++; } }); ts[i].start(); }
    for (Thread t : ts) t.join();
    System.out.println(count[0]);
    try { Object o = null; o.hashCode(); } catch (NullPointerException e) { System.out.println("npe"); }
    try { deep(0); } catch (StackOverflowError e) { System.out.println("deep"); }
  }
  static int deep(int n) { return deep(n + 1) + 1; }
}
T
javac Main.java && java -Xmx256m Main
mkdir classes && echo 'Main-Class: Main' >m && jar cfm app.jar m ./*.class && java -jar app.jar | tail -1
