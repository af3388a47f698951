// Rankings side by side, the blend first. An item that is in the blend, too, carries its place there; pointing at one marks it everywhere.

export default {
  template: `
    <div class="ac-comparison" data-testid="comparison">
      <section v-for="(column, n) in columns" :key="column.key" class="ac-panel" :aria-label="column.name" :data-policy="column.key">
        <h2>{{ column.name }}</h2>
        <p class="ac-category">{{ column.what }}</p>
        <p v-if="column.instead" class="ac-instead">{{ column.instead }}</p>
        <p v-if="n" class="ac-shared"><b>{{ column.shared }}</b> of {{ column.items.length }} are in the blend</p>
        <p v-else class="ac-shared">what the others are held against</p>
        <ol><li v-for="item in column.items" :key="item.id" :class="{shared: n && item.blend, lit: item.id === lit}" :style="{'--hue': item.hue}"
                @mouseenter="lit = item.id" @mouseleave="lit = ''" @focusin="lit = item.id">
          <a :href="item.href">{{ item.title }}</a><small>{{ item.category }}<template v-if="n && item.blend"> · {{ item.blend }} in the blend</template></small></li></ol>
      </section>
    </div>`,
  props: { columns: Array },
  data() {
    return { lit: "" };
  },
};
