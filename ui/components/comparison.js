// Rankings side by side. An item that is in the served list, too, carries its place there; pointing at one marks it everywhere.

export default {
  template: `
    <div class="ac-comparison" data-testid="comparison">
      <section v-for="(column, n) in columns" :key="column.name" class="ac-panel" :aria-label="column.name">
        <h2>{{ column.name }}</h2>
        <p class="ac-category">{{ column.what }}</p>
        <p v-if="n" class="ac-shared"><b>{{ column.shared }}</b> of {{ column.items.length }} also served</p>
        <p v-else class="ac-shared">what the others are held against</p>
        <ol><li v-for="item in column.items" :key="item.id" :class="{shared: n && item.served, lit: item.id === lit}" :style="{'--hue': item.hue}"
                @mouseenter="lit = item.id" @mouseleave="lit = ''" @focusin="lit = item.id">
          <a :href="item.href">{{ item.title }}</a><small>{{ item.category }}<template v-if="n && item.served"> · served {{ item.served }}</template></small></li></ol>
      </section>
    </div>`,
  props: { columns: Array },
  data() {
    return { lit: "" };
  },
};
